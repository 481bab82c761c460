//! The rule and the route that bring marked replies back to the node proxy, in the namespace of this thread.

use std::{
    fs,
    future::Future,
    io,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures_util::TryStreamExt as _;
use rtnetlink::{
    Handle, IpVersion, RouteMessageBuilder,
    packet_route::{
        route::{RouteMessage, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};
use underpass_model::names::{MARK_MASK, REPLY_MARK, REPLY_ROUTE_TABLE, REPLY_RULE_PRIORITY};

/// Which part of routing failed.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// No netlink socket or no runtime for it.
    #[error("cannot speak to the kernel's routing")]
    Netlink(#[source] io::Error),
    /// The namespace has no loopback interface.
    #[error("there is no interface lo")]
    NoLoopback,
    /// The kernel refused.
    #[error("cannot {step}")]
    Refused {
        /// What was tried.
        step: &'static str,
        /// What the kernel says.
        #[source]
        source: rtnetlink::Error,
    },
    /// The kernel did not answer.
    #[error("the kernel's routing did not answer within {} s", LONGEST.as_secs())]
    Slow,
}

const LONGEST: Duration = Duration::from_secs(5);

const IPV6_OFF: &str = "/proc/sys/net/ipv6/conf/all/disable_ipv6";

/// Adds what is missing; says whether something was.
pub(super) fn ensure() -> Result<bool, RouteError> {
    let off = is_ipv6_off();
    connected(|handle| async move {
        let loopback = loopback(&handle).await?;
        let v4 = ensure_for(&handle, Family::V4, loopback).await?;
        let v6 = ensure_for(&handle, Family::V6, loopback).await;
        Ok(v4 | tolerated(v6, off)?)
    })
}

/// Takes away what is there.
pub(super) fn remove() -> Result<(), RouteError> {
    let off = is_ipv6_off();
    connected(|handle| async move {
        remove_for(&handle, Family::V4).await?;
        tolerated(remove_for(&handle, Family::V6).await, off)
    })
}

/// Where IPv6 is off the kernel takes no routes of it; they follow when it is on and the rules are looked after next.
fn tolerated<T: Default>(result: Result<T, RouteError>, off: bool) -> Result<T, RouteError> {
    match result {
        Err(error @ RouteError::Refused { .. }) if off => {
            tracing::debug!(%error, "IPv6 is off in a pod's network namespace");
            Ok(T::default())
        }
        result => result,
    }
}

/// In the namespace of this thread.
fn is_ipv6_off() -> bool {
    !fs::read_to_string(IPV6_OFF).is_ok_and(|off| off.trim() == "0")
}

async fn ensure_for(handle: &Handle, family: Family, loopback: u32) -> Result<bool, RouteError> {
    let rule = existing_rule(handle, family).await?;
    let route = existing_route(handle, family).await?;
    // The rule first: it is taken also where IPv6 is off, so that only the route is left to follow.
    if rule.is_none() {
        add_rule(handle, family).await?;
    }
    if route.is_none() {
        add_route(handle, family, loopback).await?;
    }
    Ok(rule.is_none() || route.is_none())
}

async fn remove_for(handle: &Handle, family: Family) -> Result<(), RouteError> {
    if let Some(rule) = existing_rule(handle, family).await? {
        handle.rule().del(rule).execute().await.map_err(refused("delete the reply rule"))?;
    }
    if let Some(route) = existing_route(handle, family).await? {
        handle.route().del(route).execute().await.map_err(refused("delete the reply route"))?;
    }
    Ok(())
}

/// Runs on a runtime of this thread, whose socket is opened in the thread's namespace; the runtime starts no thread.
fn connected<T, F: Future<Output = Result<T, RouteError>>>(action: impl FnOnce(Handle) -> F) -> Result<T, RouteError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RouteError::Netlink)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(RouteError::Netlink)?;
        let connection = tokio::spawn(connection);
        let result = tokio::time::timeout(LONGEST, action(handle)).await;
        connection.abort();
        result.unwrap_or(Err(RouteError::Slow))
    })
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl From<Family> for IpVersion {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4,
            Family::V6 => Self::V6,
        }
    }
}

async fn loopback(handle: &Handle) -> Result<u32, RouteError> {
    let mut links = handle.link().get().match_name("lo".to_owned()).execute();
    let link = links.try_next().await.map_err(refused("look up interface lo"))?;
    link.map(|link| link.header.index).ok_or(RouteError::NoLoopback)
}

async fn existing_rule(handle: &Handle, family: Family) -> Result<Option<RuleMessage>, RouteError> {
    let rules: Vec<RuleMessage> =
        handle.rule().get(family.into()).execute().try_collect().await.map_err(refused("list rules"))?;
    Ok(rules.into_iter().find(is_ours))
}

fn is_ours(rule: &RuleMessage) -> bool {
    let has = |attribute: RuleAttribute| rule.attributes.contains(&attribute);
    let table = rule.header.table == u8::try_from(REPLY_ROUTE_TABLE).unwrap_or_default()
        || has(RuleAttribute::Table(REPLY_ROUTE_TABLE));
    table
        && rule.header.action == RuleAction::ToTable
        && has(RuleAttribute::Priority(REPLY_RULE_PRIORITY))
        && has(RuleAttribute::FwMark(REPLY_MARK))
        && has(RuleAttribute::FwMask(MARK_MASK))
}

async fn add_rule(handle: &Handle, family: Family) -> Result<(), RouteError> {
    let request = handle.rule().add();
    let request = request
        .table_id(REPLY_ROUTE_TABLE)
        .priority(REPLY_RULE_PRIORITY)
        .fw_mark(REPLY_MARK)
        .action(RuleAction::ToTable);
    let mask = RuleAttribute::FwMask(MARK_MASK);
    let result = match family {
        Family::V4 => {
            let mut request = request.v4();
            request.message_mut().attributes.push(mask);
            request.execute().await
        }
        Family::V6 => {
            let mut request = request.v6();
            request.message_mut().attributes.push(mask);
            request.execute().await
        }
    };
    result.map_err(refused("add the reply rule"))
}

async fn existing_route(handle: &Handle, family: Family) -> Result<Option<RouteMessage>, RouteError> {
    let wanted = match family {
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().table_id(REPLY_ROUTE_TABLE).build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().table_id(REPLY_ROUTE_TABLE).build(),
    };
    // The kernel ignores the table of a request unless asked for strictness, so the answers are looked at.
    let routes: Vec<RouteMessage> =
        handle.route().get(wanted).execute().try_collect().await.map_err(refused("list routes"))?;
    let table = u8::try_from(REPLY_ROUTE_TABLE).unwrap_or_default();
    let ours = |route: &RouteMessage| {
        let header = &route.header;
        header.table == table && header.kind == RouteType::Local && header.destination_prefix_length == 0
    };
    Ok(routes.into_iter().find(ours))
}

async fn add_route(handle: &Handle, family: Family, loopback: u32) -> Result<(), RouteError> {
    let route = match family {
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new()
            .table_id(REPLY_ROUTE_TABLE)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .output_interface(loopback)
            .build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new()
            .table_id(REPLY_ROUTE_TABLE)
            .kind(RouteType::Local)
            .output_interface(loopback)
            .build(),
    };
    handle.route().add(route).replace().execute().await.map_err(refused("add the reply route"))
}

fn refused(step: &'static str) -> impl Fn(rtnetlink::Error) -> RouteError {
    move |source| RouteError::Refused { step, source }
}
