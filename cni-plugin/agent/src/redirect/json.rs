//! Rules in the words of `nft -j`. Only expressions that every `nft` since 1.0 reads and writes alike.

use std::borrow::Cow;

use nftables::{
    batch::Batch,
    expr::{
        BinaryOperation, CT, CTDir, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix, SetItem,
        Socket, SocketAttr,
    },
    schema::{Chain as NftChain, NfListObject, Rule as NftRule, Table},
    stmt::{Accept, Mangle, Match, NAT, Operator, Statement},
    types::{NfChainPolicy, NfChainType, NfFamily, NfHook},
};
use serde_json::{Value, json};
use underpass_model::names::MARK_MASK;

use super::{
    Ruleset, TABLE,
    rule::{Action, Chain, Condition, Hook, Kind, Rule, Side},
};

type Word = Expression<'static>;

/// FIN, SYN, RST and ACK of the TCP flags: as a number, because `nft` versions differ in how they list flag names.
const OPENING_MASK: u32 = 0b1_0111;
/// SYN of the TCP flags.
const SYN: u32 = 0b0_0010;

impl Ruleset {
    /// One transaction that replaces the table, whatever stood there: created first so that the deletion cannot fail.
    ///
    /// # Errors
    /// Never in practice; the printer of JSON may in principle refuse.
    pub fn batch(&self) -> Result<Value, serde_json::Error> {
        let mut batch = Batch::new();
        batch.add(table());
        batch.delete(table());
        batch.add(table());
        for chain in &self.chains {
            batch.add(NfListObject::Chain(chain.to_nft()));
        }
        for chain in &self.chains {
            for (rule, comment) in chain.rules.iter().zip(chain.comments()) {
                batch.add(NfListObject::Rule(rule.to_nft(chain, comment)));
            }
        }
        document(batch)
    }

    /// One transaction that takes the table away, whether or not it is there.
    ///
    /// # Errors
    /// As [`Ruleset::batch`].
    pub fn removal() -> Result<Value, serde_json::Error> {
        let mut batch = Batch::new();
        batch.add(table());
        batch.delete(table());
        document(batch)
    }
}

/// The transaction as JSON, with one repair: the crate prints a statement without arguments (`notrack`) as a string,
/// and `nft` wants an object.
fn document(batch: Batch<'_>) -> Result<Value, serde_json::Error> {
    let mut document = serde_json::to_value(batch.to_nftables())?;
    let commands = document.get_mut("nftables").and_then(Value::as_array_mut).into_iter().flatten();
    let rules = commands.filter_map(|command| command.pointer_mut("/add/rule/expr")?.as_array_mut());
    for statement in rules.flatten() {
        if let Value::String(name) = statement {
            *statement = json!({ name.as_str(): null });
        }
    }
    Ok(document)
}

fn table() -> NfListObject<'static> {
    NfListObject::Table(Table { family: NfFamily::INet, name: TABLE.into(), handle: None })
}

impl Chain {
    fn to_nft(&self) -> NftChain<'static> {
        NftChain {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: self.name.into(),
            _type: Some(match self.kind {
                Kind::Filter => NfChainType::Filter,
                Kind::Nat => NfChainType::NAT,
                Kind::Route => NfChainType::Route,
            }),
            hook: Some(match self.hook {
                Hook::Output => NfHook::Output,
                Hook::Prerouting => NfHook::Prerouting,
            }),
            prio: Some(self.priority),
            policy: Some(NfChainPolicy::Accept),
            ..NftChain::default()
        }
    }
}

impl Rule {
    fn to_nft(&self, chain: &Chain, comment: String) -> NftRule<'static> {
        let mut statements: Vec<Statement<'static>> = self.conditions.iter().map(Condition::to_nft).collect();
        statements.push(self.action.to_nft());
        NftRule {
            family: NfFamily::INet,
            table: TABLE.into(),
            chain: chain.name.into(),
            expr: statements.into(),
            comment: Some(comment.into()),
            ..NftRule::default()
        }
    }
}

impl Condition {
    fn to_nft(&self) -> Statement<'static> {
        let (left, op, right) = match self {
            Self::ConnectionMarkIs(mark) => (masked(conntrack("mark")), Operator::EQ, Word::Number(*mark)),
            Self::Loopback(hook) => (interface(*hook), Operator::EQ, Word::String("lo".into())),
            Self::NotLoopback(hook) => (interface(*hook), Operator::NEQ, Word::String("lo".into())),
            Self::OpeningSyn => (and(tcp("flags"), OPENING_MASK), Operator::EQ, Word::Number(SYN)),
            Self::OriginalDirection => (conntrack("direction"), Operator::EQ, Word::String("original".into())),
            Self::PacketMarkIs(mark) => (masked(meta(MetaKey::Mark)), Operator::EQ, Word::Number(*mark)),
            Self::PacketMarkIsNot(marks) => {
                (masked(meta(MetaKey::Mark)), Operator::NEQ, set(marks.iter().copied().map(Word::Number)))
            }
            Self::PortIs(side, numbers) => (tcp(side.port()), Operator::EQ, ports(numbers)),
            Self::PortIsNot(side, numbers) => (tcp(side.port()), Operator::NEQ, ports(numbers)),
            // No comparison is wanted but the look-up itself, which ends the rule when it finds nothing.
            Self::SocketListens => {
                (socket(&SocketAttr::Transparent), Operator::EQ, set([Word::Number(0), Word::Number(1)].into_iter()))
            }
            Self::SocketMarkIs(mark) => (masked(socket(&SocketAttr::Mark)), Operator::EQ, Word::Number(*mark)),
            Self::Tcp => (meta(MetaKey::L4proto), Operator::EQ, Word::String("tcp".into())),
            Self::V4In(side, networks) => {
                let networks = networks.iter().map(|net| prefix(net.addr().to_string(), net.prefix_len(), 32));
                (address("ip", *side), Operator::EQ, set(networks))
            }
            Self::V6In(side, networks) => {
                let networks = networks.iter().map(|net| prefix(net.addr().to_string(), net.prefix_len(), 128));
                (address("ip6", *side), Operator::EQ, set(networks))
            }
        };
        Statement::Match(Match { left, right, op })
    }
}

impl Action {
    fn to_nft(&self) -> Statement<'static> {
        match self {
            Self::Accept => Statement::Accept(Some(Accept {})),
            Self::Notrack => Statement::Notrack,
            Self::Redirect(port) => Statement::Redirect(Some(NAT {
                addr: None,
                family: None,
                port: Some(Word::Number((*port).into())),
                flags: None,
            })),
            Self::SetConnectionMark(mark) => mangle(conntrack("mark"), *mark),
            Self::SetOriginalZone(zone) => mangle(
                Word::Named(NamedExpression::CT(CT { key: "zone".into(), family: None, dir: Some(CTDir::Original) })),
                (*zone).into(),
            ),
            Self::SetPacketMark(mark) => mangle(meta(MetaKey::Mark), *mark),
        }
    }
}

fn meta(key: MetaKey) -> Word {
    Word::Named(NamedExpression::Meta(Meta { key }))
}

fn interface(hook: Hook) -> Word {
    meta(match hook {
        Hook::Output => MetaKey::Oifname,
        Hook::Prerouting => MetaKey::Iifname,
    })
}

fn conntrack(key: &'static str) -> Word {
    Word::Named(NamedExpression::CT(CT { key: key.into(), family: None, dir: None }))
}

fn socket(key: &'static SocketAttr) -> Word {
    Word::Named(NamedExpression::Socket(Socket { key: Cow::Borrowed(key) }))
}

fn payload(protocol: &'static str, field: &'static str) -> Word {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Word::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn tcp(field: &'static str) -> Word {
    payload("tcp", field)
}

fn address(protocol: &'static str, side: Side) -> Word {
    payload(protocol, side.address())
}

fn masked(value: Word) -> Word {
    and(value, MARK_MASK)
}

fn and(value: Word, mask: u32) -> Word {
    Word::BinaryOperation(Box::new(BinaryOperation::AND(value, Word::Number(mask))))
}

fn ports(numbers: &[u16]) -> Word {
    set(numbers.iter().map(|&port| Word::Number(port.into())))
}

fn prefix(address: String, length: u8, whole: u8) -> Word {
    let address = Word::String(address.into());
    if length == whole {
        return address;
    }
    Word::Named(NamedExpression::Prefix(Prefix { addr: Box::new(address), len: length.into() }))
}

/// One item as it is: `nft` lists a set of one that way too.
fn set(items: impl Iterator<Item = Word>) -> Word {
    let mut items: Vec<Word> = items.collect();
    match items.pop() {
        Some(only) if items.is_empty() => only,
        last => {
            items.extend(last);
            Word::Named(NamedExpression::Set(items.into_iter().map(SetItem::Element).collect()))
        }
    }
}

fn mangle(key: Word, value: u32) -> Statement<'static> {
    Statement::Mangle(Mangle { key, value: Word::Number(value) })
}
