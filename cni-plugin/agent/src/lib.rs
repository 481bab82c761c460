//! The node agent: programs pods, hands their network namespaces to the node proxy, and answers its questions.
//!
//! Downwards: [`app`] builds everything; [`plugin_server`] and [`pods`] decide and act; [`proxies`] speaks to node
//! proxies, [`program`] to namespaces, [`probe`] to the kernel; [`install`] keeps the plugin where it belongs; [`redirect`] and [`facts`] are pure.

pub mod app;
pub mod config;
pub mod facts;
pub mod find;
pub mod install;
pub mod memory;
pub mod older;
pub mod plugin_server;
pub mod pods;
pub mod probe;
pub mod program;
pub mod proxies;
pub mod redirect;
pub mod reports;
pub mod source;
pub mod uninstall;
