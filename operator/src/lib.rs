//! The operator: Kubernetes objects in, the mesh out.
//!
//! [`translate`] turns objects into workloads and services, [`publication`] tells subscribers what changes, [`ca`]
//! signs certificates for what [`attest`] allows and revokes them, [`withdrawal`] lets pods leave without a lost call, and [`app`] puts
//! the parts together.

pub mod app;
pub mod attest;
pub mod ca;
pub mod config;
mod join;
mod pages;
pub mod publication;
mod revocations;
pub mod tokens;
pub mod translate;
pub mod withdrawal;
