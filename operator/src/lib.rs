//! The operator: Kubernetes objects in, the mesh out.
//!
//! [`source`] has the objects, [`translate`] turns them into workloads and services, [`publication`] tells subscribers
//! what changes, [`verdict`] tells people, [`ca`] signs certificates for what [`attest`] allows and revokes them, [`withdrawal`] lets pods
//! leave without a lost call, [`cluster`] is what differs on Kubernetes, and [`app`] puts the parts together.

pub mod app;
pub mod attest;
pub mod ca;
pub mod census;
pub mod cluster;
pub mod config;
mod intent;
mod join;
mod pages;
pub mod publication;
pub mod pushes;
mod revocations;
pub mod source;
pub mod tokens;
pub mod translate;
pub mod verdict;
pub mod withdrawal;
