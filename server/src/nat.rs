//! What the kernel does for tunnel traffic: forward it, translate it, keep clients apart.
//!
//! One nftables table, `inet culvert_<device>`, that this gateway owns. It is replaced in one
//! transaction, so that a second start changes nothing and no moment is without rules, and
//! removed when [`Nat`] is dropped. Rules of others stay as they are, and still apply: an accept
//! here ends only our own chain (see `firewall`).

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;
use nftables::batch::Batch;
use nftables::expr::{CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix};
use nftables::helper::{self, NftablesError};
use nftables::schema::{Chain, NfListObject, NfObject, Nftables, Rule, Table};
use nftables::stmt::{Accept, Drop as Deny, Match, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use crate::addresses::Pool;
use crate::config::Translated;

/// The table is in force until this is dropped.
#[derive(Debug)]
pub struct Nat {
    table: String,
}

/// The rules could not be changed; they are as they were.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// No `nft`.
    #[error("the program nft is missing; install nftables (apt install nftables)")]
    Missing,
    /// What is in force cannot be seen.
    #[error("nft cannot list this host's tables and chains: {0}")]
    Unlistable(NftablesError),
    /// The kernel or `nft` refused.
    #[error("nft cannot change table inet {table}: {error}")]
    Refused {
        /// Ours.
        table: String,
        /// What it said.
        error: NftablesError,
    },
}

/// The name of the table that belongs to a device.
pub fn table_name(device: &str) -> String {
    format!("culvert_{device}")
}

impl Nat {
    /// Puts the table in force, in place of one that an earlier run left.
    ///
    /// # Errors
    /// [`NatError`]; nothing has changed then.
    pub fn apply(device: &str, pool: &Pool, isolation: bool, translated: Translated) -> Result<Self, NatError> {
        put(device, pool, isolation, translated)?;
        Ok(Self { table: table_name(device) })
    }
}

/// Puts a table in force in place of the one that is there, in one step; whoever holds that one's [`Nat`]
/// holds this one's.
///
/// # Errors
/// [`NatError`]; nothing has changed then.
pub fn put(device: &str, pool: &Pool, isolation: bool, translated: Translated) -> Result<(), NatError> {
    let table = table_name(device);
    apply(&table, &ruleset(&table, device, pool, isolation, translated))
}

impl Drop for Nat {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.table) {
            tracing::warn!(event = "undo_failed", table = self.table, %error, "the nftables table stays");
        }
    }
}

/// Removes a table if it is there.
///
/// # Errors
/// [`NatError`].
pub fn remove(table: &str) -> Result<(), NatError> {
    let mut batch = Batch::new();
    // Deleting what is not there is an error; adding what is there is none.
    batch.add(table_object(table));
    batch.delete(table_object(table));
    apply(table, &batch.to_nftables())
}

/// True when this table is in force in this network namespace.
///
/// # Errors
/// [`NatError`].
pub fn is_there(table: &str) -> Result<bool, NatError> {
    let listed = helper::get_current_ruleset_with_args(helper::DEFAULT_NFT, ["list", "tables"]).map_err(unlistable)?;
    Ok(listed
        .objects
        .iter()
        .any(|object| matches!(object, NfObject::ListObject(NfListObject::Table(found)) if found.name == table)))
}

/// True when any table of another gateway of ours is in force in this network namespace.
///
/// # Errors
/// [`NatError`].
pub fn other_gateways(own_table: &str) -> Result<bool, NatError> {
    let listed = helper::get_current_ruleset_with_args(helper::DEFAULT_NFT, ["list", "tables"]).map_err(unlistable)?;
    Ok(listed.objects.iter().any(|object| {
        matches!(object, NfObject::ListObject(NfListObject::Table(table))
            if table.name.starts_with("culvert_") && table.name != own_table)
    }))
}

fn apply(table: &str, rules: &Nftables<'_>) -> Result<(), NatError> {
    helper::apply_ruleset(rules).map_err(|error| refused(table, error))
}

fn refused(table: &str, error: NftablesError) -> NatError {
    if is_missing(&error) { NatError::Missing } else { NatError::Refused { table: table.to_owned(), error } }
}

fn unlistable(error: NftablesError) -> NatError {
    if is_missing(&error) { NatError::Missing } else { NatError::Unlistable(error) }
}

fn is_missing(error: &NftablesError) -> bool {
    matches!(error, NftablesError::NftExecution { inner, .. } if inner.kind() == std::io::ErrorKind::NotFound)
}

fn ruleset<'a>(table: &'a str, device: &'a str, pool: &Pool, isolation: bool, translated: Translated) -> Nftables<'a> {
    let networks: Vec<IpNet> = [Some(pool.ipv4().into()), pool.ipv6().map(IpNet::from)].into_iter().flatten().collect();
    let mut batch = Batch::new();
    batch.add(table_object(table));
    batch.delete(table_object(table));
    batch.add(table_object(table));

    batch.add(chain(table, "forward", NfChainType::Filter, NfHook::Forward, 0));
    let mut forward = |statements| batch.add(rule(table, "forward", statements));
    if isolation {
        forward(vec![from(device), to(device), Statement::Drop(Some(Deny {}))]);
    }
    for network in &networks {
        forward(vec![from(device), source(*network), Statement::Accept(Some(Accept {}))]);
    }
    // Whatever else comes out of the tunnel has a forged source.
    forward(vec![from(device), Statement::Drop(Some(Deny {}))]);
    // Into the tunnel come answers only: clients are not reachable from outside.
    forward(vec![to(device), answers(), Statement::Accept(Some(Accept {}))]);
    forward(vec![to(device), Statement::Drop(Some(Deny {}))]);

    batch.add(chain(table, "postrouting", NfChainType::NAT, NfHook::Postrouting, 100));
    let outside = |network: &&IpNet| match network {
        IpNet::V4(_) => translated.ipv4,
        IpNet::V6(_) => translated.ipv6,
    };
    for network in networks.iter().filter(outside) {
        let statements = vec![source(*network), not_to(device), Statement::Masquerade(None)];
        batch.add(rule(table, "postrouting", statements));
    }
    batch.to_nftables()
}

fn table_object(name: &str) -> NfListObject<'_> {
    NfListObject::Table(Table { family: NfFamily::INet, name: name.into(), handle: None })
}

/// `priority`: 0 is `filter`, 100 is `srcnat` (nft(8), "Standard priority names").
fn chain<'a>(table: &'a str, name: &'a str, kind: NfChainType, hook: NfHook, priority: i32) -> NfListObject<'a> {
    NfListObject::Chain(Chain {
        family: NfFamily::INet,
        table: table.into(),
        name: name.into(),
        _type: Some(kind),
        hook: Some(hook),
        prio: Some(priority),
        policy: Some(NfChainPolicy::Accept),
        ..Chain::default()
    })
}

fn rule<'a>(table: &'a str, chain: &'a str, statements: Vec<Statement<'a>>) -> NfListObject<'a> {
    NfListObject::Rule(Rule {
        family: NfFamily::INet,
        table: table.into(),
        chain: chain.into(),
        expr: Cow::Owned(statements),
        ..Rule::default()
    })
}

fn from(device: &str) -> Statement<'_> {
    interface(MetaKey::Iifname, Operator::EQ, device)
}

fn to(device: &str) -> Statement<'_> {
    interface(MetaKey::Oifname, Operator::EQ, device)
}

fn not_to(device: &str) -> Statement<'_> {
    interface(MetaKey::Oifname, Operator::NEQ, device)
}

fn interface(key: MetaKey, op: Operator, device: &str) -> Statement<'_> {
    let left = Expression::Named(NamedExpression::Meta(Meta { key }));
    Statement::Match(Match { left, op, right: Expression::String(device.into()) })
}

fn source<'a>(network: IpNet) -> Statement<'a> {
    let protocol = match network.addr() {
        IpAddr::V4(_) => "ip",
        IpAddr::V6(_) => "ip6",
    };
    let field = PayloadField { protocol: protocol.into(), field: "saddr".into() };
    let address = Expression::String(network.addr().to_string().into());
    Statement::Match(Match {
        left: Expression::Named(NamedExpression::Payload(Payload::PayloadField(field))),
        op: Operator::EQ,
        right: Expression::Named(NamedExpression::Prefix(Prefix {
            addr: Box::new(address),
            len: network.prefix_len().into(),
        })),
    })
}

fn answers<'a>() -> Statement<'a> {
    let state = CT { key: "state".into(), family: None, dir: None };
    Statement::Match(Match {
        left: Expression::Named(NamedExpression::CT(state)),
        op: Operator::IN,
        right: Expression::List(
            vec!["established".into(), "related".into()].into_iter().map(Expression::String).collect(),
        ),
    })
}
