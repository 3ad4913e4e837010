//! Linux: policy routing over rtnetlink(7).
//!
//! Two rules per address family, nearly as wg-quick(8) has them: `lookup main suppress_prefixlength 7`
//! keeps local networks local, then `not fwmark MARK lookup TABLE` sends the rest to our table.
//! Excluded destinations are `throw` routes there, which fall through to the main table; IPv6 that
//! the gateway does not carry is `unreachable` there, so that programs fall back to IPv4 at once.
//! Addresses and routes through the interface vanish with it; the rules and the rest would not.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use futures_util::{Stream, StreamExt, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{AddressMessageBuilder, Handle, IpVersion, LinkUnspec, RouteMessageBuilder, new_connection};
use tokio::task::JoinHandle;

use super::{LocalNet, Plan, RouteError};
use crate::journal::{Change, Entry, Journal};

/// Routes of the main table with shorter prefixes are no local networks (10.0.0.0/8 is the widest of RFC 1918): they
/// are defaults in pieces, of another VPN, or of a hostile DHCP server (CVE-2024-3661), and do not go before ours.
const WIDEST_LOCAL: u8 = 8;
/// Before `lookup main` (32766), in this order.
const OWN_PRIORITY: u32 = 32762;
const PREFERENCE_PRIORITY: u32 = 32763;
const SUPPRESS_PRIORITY: u32 = 32764;
const TUNNEL_PRIORITY: u32 = 32765;

/// What is in force.
#[derive(Debug)]
pub(super) struct Routes {
    device: String,
    index: u32,
    note: Option<String>,
    /// Some inner network goes before a local one.
    has_preferences: bool,
    made: Vec<(Entry, Change)>,
}

impl Routes {
    pub(super) async fn apply(plan: &Plan, journal: &mut Journal) -> Result<Self, RouteError> {
        let net = Netlink::open()?;
        let index = net.index(&plan.device).await?;
        let (note, preferred) = plan.settle(&net.local_networks(index).await?)?;
        if !net.routes(AddressFamily::Inet, plan.fwmark).await?.is_empty()
            || !net.routes(AddressFamily::Inet6, plan.fwmark).await?.is_empty()
        {
            return Err(RouteError::TableTaken(plan.fwmark));
        }
        let has_preferences = !preferred.is_empty();
        let mut routes = Self { device: plan.device.clone(), index, note, has_preferences, made: Vec::new() };
        if let Err(error) = routes.make(plan, &preferred, &net, index, journal).await {
            if let Err(second) = routes.undo(journal).await {
                tracing::error!(error = %second, "what was done could not be undone");
            }
            return Err(error);
        }
        Ok(routes)
    }

    /// `preferred`: inner networks that go before local ones with the same addresses.
    async fn make(
        &mut self,
        plan: &Plan,
        preferred: &[IpNet],
        net: &Netlink,
        index: u32,
        journal: &mut Journal,
    ) -> Result<(), RouteError> {
        let v6_here = Path::new("/proc/sys/net/ipv6").exists();
        if v6_here {
            // The interface is ours and takes these with it when it goes.
            let own = format!("net/ipv6/conf/{}", plan.device);
            write_sysctl(&format!("{own}/disable_ipv6"), if plan.ipv6.is_some() { "0" } else { "1" })?;
            write_sysctl(&format!("{own}/addr_gen_mode"), "1")?; // no link-local address, so no router solicitations
        }
        net.set_link(index, plan.mtu_bytes, true).await?;
        net.add_address(index, plan.ipv4.into()).await?;
        if let Some(ipv6) = plan.ipv6.filter(|_| v6_here) {
            net.add_address(index, ipv6.into()).await?;
        }
        if plan.is_full_v4() {
            self.loosen_reverse_path(journal)?;
        }
        let policy = Change::PolicyRouting { table: plan.fwmark, fwmark: plan.fwmark };
        let entry = journal.record(policy.clone())?;
        self.made.push((entry, policy));
        // Routes before rules: there is no moment in which the rules point to an empty table.
        for (destination, kind) in destinations(plan, v6_here) {
            let interface = (kind == RouteType::Unicast).then_some(index);
            net.add_route(route(destination, kind, interface, plan.fwmark)).await?;
        }
        for family in families(v6_here) {
            for rule in rules(family, plan.fwmark, plan.fwmark) {
                net.add_rule(rule).await?;
            }
        }
        for family in families(v6_here) {
            let of_family = |inner: &&IpNet| inner.addr().is_ipv4() == (family == AddressFamily::Inet);
            let mut inner = preferred.iter().filter(of_family).peekable();
            if inner.peek().is_some() {
                net.add_rule(own(family, plan.fwmark)).await?;
            }
            for inner in inner {
                net.add_rule(preference(family, *inner, plan.fwmark)).await?;
            }
        }
        Ok(())
    }

    /// What is new or other first, then away with what is gone.
    pub(super) async fn change(&mut self, old: &Plan, plan: &Plan, journal: &mut Journal) -> Result<bool, RouteError> {
        let net = Netlink::open()?;
        let (note, preferred) = plan.settle(&net.local_networks(self.index).await?)?;
        if self.has_preferences || !preferred.is_empty() {
            return Ok(false); // rules, too, would have to be changed
        }
        if plan.is_full_v4() && !old.is_full_v4() {
            self.loosen_reverse_path(journal)?;
        }
        let v6_here = Path::new("/proc/sys/net/ipv6").exists();
        let (before, after) = (destinations(old, v6_here), destinations(plan, v6_here));
        let message = |(destination, kind): (IpNet, RouteType)| {
            let interface = (kind == RouteType::Unicast).then_some(self.index);
            route(destination, kind, interface, plan.fwmark)
        };
        for wanted in after.iter().filter(|wanted| !before.contains(wanted)) {
            net.replace_route(message(*wanted)).await?;
        }
        for gone in before.iter().filter(|(net, _)| after.iter().all(|(kept, _)| kept != net)) {
            net.delete_route(message(*gone)).await?;
        }
        self.note = note;
        Ok(true)
    }

    /// A strict reverse-path filter (RFC 3704) would drop the gateway's answers, because the way
    /// back to an unmarked source leads into the tunnel. Loose is what systemd sets anyway.
    fn loosen_reverse_path(&mut self, journal: &mut Journal) -> Result<(), RouteError> {
        const KEY: &str = "net/ipv4/conf/all/rp_filter";
        let all = read_sysctl(KEY)?;
        let strict_somewhere = all == "1"
            || (all == "0" && interfaces_v4()?.iter().any(|key| read_sysctl(key).is_ok_and(|value| value == "1")));
        if !strict_somewhere {
            return Ok(());
        }
        let change = Change::Sysctl { key: KEY.into(), was: all, set: "2".into() };
        let entry = journal.record(change.clone())?;
        self.made.push((entry, change));
        write_sysctl(KEY, "2")
    }

    pub(super) fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    pub(super) async fn set_mtu(&self, mtu_bytes: u16) -> Result<(), RouteError> {
        let net = Netlink::open()?;
        let index = net.index(&self.device).await?;
        net.set_link(index, mtu_bytes, false).await
    }

    pub(super) async fn undo(mut self, journal: &mut Journal) -> Result<(), RouteError> {
        while let Some((entry, change)) = self.made.last() {
            undo(change).await?;
            journal.strike(*entry)?;
            self.made.pop();
        }
        Ok(())
    }
}

impl Drop for Routes {
    /// Undoes what is left, on a thread of its own, since the caller's executor cannot be blocked on.
    fn drop(&mut self) {
        if self.made.is_empty() {
            return;
        }
        let made = std::mem::take(&mut self.made);
        let undone = std::thread::spawn(move || -> Result<(), RouteError> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            for (_, change) in made.iter().rev() {
                runtime.block_on(undo(change))?;
            }
            Ok(())
        });
        match undone.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "routes could not be undone; the next start tries again");
            }
            Err(_) => tracing::error!("undoing the routes failed; the next start tries again"),
        }
    }
}

/// Undoes one journaled change. Repeating it does no harm.
pub(super) async fn undo(change: &Change) -> Result<(), RouteError> {
    match change {
        Change::PolicyRouting { table, fwmark } => {
            let net = Netlink::open()?;
            for family in families(Path::new("/proc/sys/net/ipv6").exists()) {
                for rule in net.preferences(family, *table, *fwmark).await? {
                    net.delete_rule(rule).await?;
                }
                for rule in rules(family, *table, *fwmark) {
                    net.delete_rule(rule).await?;
                }
                for route in net.routes(family, *table).await? {
                    net.delete_route(route).await?;
                }
            }
            Ok(())
        }
        Change::Sysctl { key, was, set } => {
            if read_sysctl(key)? == *set {
                write_sysctl(key, was)?;
            }
            Ok(())
        }
        Change::ResolverFile(_) | Change::Resolvconf { .. } => Ok(()), // the resolver's owner undoes it
    }
}

fn families(v6_here: bool) -> impl Iterator<Item = AddressFamily> {
    [AddressFamily::Inet, AddressFamily::Inet6]
        .into_iter()
        .filter(move |family| v6_here || *family == AddressFamily::Inet)
}

/// What our table says, each destination once: the kernel refuses a second route to it. A
/// destination that is both excluded and carried is excluded.
fn destinations(plan: &Plan, v6_here: bool) -> Vec<(IpNet, RouteType)> {
    let mut excluded: Vec<IpNet> = plan.excluded.iter().map(IpNet::trunc).collect();
    excluded.sort();
    excluded.dedup();
    let carried = plan.carried().into_iter().map(|net| (net, RouteType::Unicast));
    let refused = plan.refuses_v6().then(|| (default_v6(), RouteType::Unreachable));
    let mut all: Vec<_> = carried.chain(refused).filter(|(net, _)| !excluded.contains(net)).collect();
    all.extend(excluded.into_iter().map(|net| (net, RouteType::Throw)));
    all.retain(|(net, _)| v6_here || matches!(net, IpNet::V4(_)));
    all
}

/// The two rules of one family, in the order in which they are added.
fn rules(family: AddressFamily, table: u32, fwmark: u32) -> [RuleMessage; 2] {
    let mut suppress = to_table(family, SUPPRESS_PRIORITY);
    suppress.header.table = RouteHeader::RT_TABLE_MAIN;
    suppress.attributes.push(RuleAttribute::Table(RouteHeader::RT_TABLE_MAIN.into()));
    suppress.attributes.push(RuleAttribute::SuppressPrefixLen(u32::from(WIDEST_LOCAL) - 1));
    let mut tunnel = to_table(family, TUNNEL_PRIORITY);
    tunnel.header.flags = RuleFlags::Invert;
    tunnel.attributes.push(RuleAttribute::Table(table));
    tunnel.attributes.push(RuleAttribute::FwMark(fwmark));
    tunnel.attributes.push(RuleAttribute::FwMask(u32::MAX));
    [suppress, tunnel]
}

/// A network behind the gateway that goes before a local one with the same addresses.
fn preference(family: AddressFamily, inner: IpNet, table: u32) -> RuleMessage {
    let mut rule = to_table(family, PREFERENCE_PRIORITY);
    rule.header.dst_len = inner.prefix_len();
    rule.attributes.push(RuleAttribute::Destination(inner.addr()));
    rule.attributes.push(RuleAttribute::Table(table));
    rule
}

/// The tunnel's own packets, which may have to reach the local one.
fn own(family: AddressFamily, fwmark: u32) -> RuleMessage {
    let mut rule = to_table(family, OWN_PRIORITY);
    rule.header.table = RouteHeader::RT_TABLE_MAIN;
    rule.attributes.push(RuleAttribute::Table(RouteHeader::RT_TABLE_MAIN.into()));
    rule.attributes.push(RuleAttribute::FwMark(fwmark));
    rule.attributes.push(RuleAttribute::FwMask(u32::MAX));
    rule
}

fn to_table(family: AddressFamily, priority: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::ToTable;
    rule.attributes.push(RuleAttribute::Priority(priority));
    rule
}

fn route(destination: IpNet, kind: RouteType, interface: Option<u32>, table: u32) -> RouteMessage {
    let mut route = match destination.trunc() {
        IpNet::V4(v4) => {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4.network(), v4.prefix_len()).build()
        }
        IpNet::V6(v6) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6.network(), v6.prefix_len()).build()
        }
    };
    route.header.kind = kind;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = if kind == RouteType::Unicast { RouteScope::Link } else { RouteScope::Universe };
    route.attributes.push(RouteAttribute::Table(table));
    if let Some(index) = interface {
        route.attributes.push(RouteAttribute::Oif(index));
    }
    route
}

fn default_v6() -> IpNet {
    IpNet::V6(ipnet::Ipv6Net::default())
}

/// A netlink socket and the task that reads it; both end with this value.
struct Netlink {
    handle: Handle,
    reader: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Netlink {
    fn open() -> Result<Self, RouteError> {
        let opened = new_connection().map_err(|error| RouteError::Kernel { doing: "opening netlink", error })?;
        let (connection, handle, _) = opened;
        Ok(Self { handle, reader: tokio::spawn(connection) })
    }

    async fn index(&self, device: &str) -> Result<u32, RouteError> {
        let mut links = Box::pin(self.handle.link().get().match_name(device).execute());
        let gone = || RouteError::NoInterface(device.into());
        match links.try_next().await {
            Ok(link) => Ok(link.ok_or_else(gone)?.header.index),
            Err(error) if os_error(&error) == Some(rustix::io::Errno::NODEV.raw_os_error()) => Err(gone()),
            Err(error) => Err(kernel("looking for the interface", &error)),
        }
    }

    async fn set_link(&self, index: u32, mtu_bytes: u16, up: bool) -> Result<(), RouteError> {
        let link = LinkUnspec::new_with_index(index).mtu(mtu_bytes.into());
        let link = if up { link.up() } else { link };
        self.handle.link().set(link.build()).execute().await.map_err(|e| kernel("setting the interface up", &e))
    }

    async fn add_address(&self, index: u32, address: IpAddr) -> Result<(), RouteError> {
        let message = match address {
            IpAddr::V4(v4) => AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(v4, 32).build(),
            IpAddr::V6(v6) => {
                let mut message = AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(v6, 128).build();
                // Nobody else is on this link, so there is nothing to detect and no second to wait.
                message.header.flags = AddressHeaderFlags::Nodad;
                message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
                message
            }
        };
        let mut request = self.handle.address().add(index, address, if address.is_ipv4() { 32 } else { 128 });
        *request.message_mut() = message;
        request.replace().execute().await.map_err(|e| kernel("adding the inner address", &e))
    }

    async fn add_route(&self, route: RouteMessage) -> Result<(), RouteError> {
        self.handle.route().add(route).execute().await.map_err(|e| kernel("adding a route", &e))
    }

    /// In place of one to the same destination.
    async fn replace_route(&self, route: RouteMessage) -> Result<(), RouteError> {
        self.handle.route().add(route).replace().execute().await.map_err(|e| kernel("changing a route", &e))
    }

    /// One that is gone already is no error.
    async fn delete_route(&self, route: RouteMessage) -> Result<(), RouteError> {
        absent_is_fine(self.handle.route().del(route).execute().await).map_err(|e| kernel("deleting a route", &e))
    }

    async fn add_rule(&self, rule: RuleMessage) -> Result<(), RouteError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule;
        request.execute().await.map_err(|e| kernel("adding a routing rule", &e))
    }

    async fn delete_rule(&self, rule: RuleMessage) -> Result<(), RouteError> {
        absent_is_fine(self.handle.rule().del(rule).execute().await).map_err(|e| kernel("deleting a routing rule", &e))
    }

    /// Our rules for single networks.
    async fn preferences(
        &self,
        family: AddressFamily,
        table: u32,
        fwmark: u32,
    ) -> Result<Vec<RuleMessage>, RouteError> {
        let version = if family == AddressFamily::Inet { IpVersion::V4 } else { IpVersion::V6 };
        let all = collect(self.handle.rule().get(version).execute()).await;
        let all = all.map_err(|error| kernel("reading the routing rules", &error))?;
        let ours = |rule: &RuleMessage| {
            let has = |attribute| rule.attributes.contains(&attribute);
            has(RuleAttribute::Priority(PREFERENCE_PRIORITY)) && has(RuleAttribute::Table(table))
                || has(RuleAttribute::Priority(OWN_PRIORITY)) && has(RuleAttribute::FwMark(fwmark))
        };
        Ok(all.into_iter().filter(ours).collect())
    }

    /// The routes of one table. The kernel gives all tables; ours is picked here.
    async fn routes(&self, family: AddressFamily, table: u32) -> Result<Vec<RouteMessage>, RouteError> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        let all = collect(self.handle.route().get(filter).execute()).await;
        let all = all.map_err(|error| kernel("reading the routes", &error))?;
        Ok(all.into_iter().filter(|route| table_of(route) == table).collect())
    }

    /// Networks that the main table reaches by itself, except through our own interface.
    async fn local_networks(&self, ours: u32) -> Result<Vec<LocalNet>, RouteError> {
        let links =
            collect(self.handle.link().get().execute()).await.map_err(|e| kernel("reading the interfaces", &e))?;
        let name = |index: u32| {
            let link = links.iter().find(|link| link.header.index == index)?;
            link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            })
        };
        let mut nets = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for route in self.routes(family, RouteHeader::RT_TABLE_MAIN.into()).await? {
                let (Some(net), Some(index)) = (destination(&route), interface(&route)) else {
                    continue;
                };
                if index != ours && route.header.kind == RouteType::Unicast {
                    nets.push(LocalNet { net, interface: name(index).unwrap_or_else(|| index.to_string()) });
                }
            }
        }
        Ok(nets)
    }
}

/// The destination, unless the route is a default one or for one link only.
fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })?;
    let length = route.header.destination_prefix_length;
    let for_one_link = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_multicast());
    if length < WIDEST_LOCAL || for_one_link { None } else { IpNet::new(address, length).ok() }
}

fn interface(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn table_of(route: &RouteMessage) -> u32 {
    let long = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    long.unwrap_or(route.header.table.into())
}

async fn collect<T>(stream: impl Stream<Item = Result<T, rtnetlink::Error>>) -> Result<Vec<T>, rtnetlink::Error> {
    let mut stream = std::pin::pin!(stream);
    let mut all = Vec::new();
    while let Some(item) = stream.next().await {
        all.push(item?);
    }
    Ok(all)
}

fn absent_is_fine(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    use rustix::io::Errno;
    let absent = [Errno::NOENT, Errno::SRCH, Errno::NODEV].map(Errno::raw_os_error);
    match result {
        Err(error) if os_error(&error).is_some_and(|number| absent.contains(&number)) => Ok(()),
        other => other,
    }
}

fn os_error(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(message.raw_code().abs()),
        _ => None,
    }
}

fn kernel(doing: &'static str, error: &rtnetlink::Error) -> RouteError {
    let error = os_error(error).map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error);
    RouteError::Kernel { doing, error }
}

fn read_sysctl(key: &str) -> Result<String, RouteError> {
    let read = fs::read_to_string(Path::new("/proc/sys").join(key));
    read.map(|text| text.trim().to_owned())
        .map_err(|error| RouteError::Kernel { doing: "reading a kernel parameter", error })
}

/// Writes only what differs: `/proc/sys` is read-only in many containers and often right as it is.
fn write_sysctl(key: &str, value: &str) -> Result<(), RouteError> {
    if read_sysctl(key)? == value {
        return Ok(());
    }
    let written = fs::write(Path::new("/proc/sys").join(key), value);
    written.map_err(|error| RouteError::Kernel { doing: "setting a kernel parameter", error })
}

fn interfaces_v4() -> Result<Vec<String>, RouteError> {
    let entries = fs::read_dir("/proc/sys/net/ipv4/conf")
        .map_err(|error| RouteError::Kernel { doing: "reading the interfaces", error })?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| name != "default").map(|name| format!("net/ipv4/conf/{name}/rp_filter")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_protocol::Overlap;

    #[test]
    fn a_kernel_without_ipv6_gets_no_ipv6_routes() {
        let plan = Plan {
            device: "culvert0".into(),
            ipv4: "100.77.0.2".parse().unwrap(),
            ipv6: Some("fd00:77::2".parse().unwrap()),
            mtu_bytes: 1280,
            routes: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
            excluded: vec!["2001:db8::/32".parse().unwrap()],
            networks: vec!["fd00:77::/64".parse().unwrap()],
            fwmark: 1,
            overlap: Overlap::Ask,
        };
        assert_eq!(destinations(&plan, false), [("0.0.0.0/0".parse().unwrap(), RouteType::Unicast)]);
        assert_eq!(destinations(&plan, true).len(), 4);
        let without = Plan { ipv6: None, ..plan };
        assert_eq!(destinations(&without, false), [("0.0.0.0/0".parse().unwrap(), RouteType::Unicast)]);
    }
}
