//! Everything that a welcome puts in force on this machine, as one value that undoes itself.
//!
//! Order: interface, routes, names; undone in reverse. A step that fails undoes those before it.

use std::net::IpAddr;

use culvert_protocol::{Problem, Protection, code};
use culvert_tunnel::control::Welcome;
use ipnet::IpNet;

use crate::device::{self, Tun};
use crate::dial::system;
use crate::dns::{DnsGuard, Servers};
use crate::journal::Journal;
use crate::profile::Carried;
use crate::routes::{Plan, RouteGuard};
use crate::session::Options;

/// The inner MTU to begin with: the least that IPv6 allows. The shard follows the path from there.
const FIRST_MTU_BYTES: u16 = 1280;

/// What is in force.
#[derive(Debug)]
pub struct Installed {
    plan: Plan,
    servers: Option<Servers>,
    routes: RouteGuard,
    dns: Option<DnsGuard>,
    notes: Vec<String>,
}

impl Installed {
    /// Makes the interface and puts routes and names in force.
    ///
    /// # Errors
    /// One sentence with its code; nothing is left in force.
    pub async fn new(options: &Options, welcome: &Welcome, journal: &mut Journal) -> Result<(Self, Tun), Problem> {
        let (plan, servers) = (plan(options, welcome), servers(options, welcome));
        let device = device::open(&options.device)?;
        let routes = RouteGuard::apply(&plan, journal).await.map_err(|error| error.problem())?;
        let notes = routes.note().map(str::to_owned).into_iter().collect();
        let mut installed = Self { plan, servers, routes, dns: None, notes };
        let Some(servers) = &installed.servers else { return Ok((installed, device)) };
        match DnsGuard::apply(servers, installed.routes.index(), journal).await {
            Ok(guard) => {
                installed.notes.extend(guard.note().map(str::to_owned));
                installed.dns = Some(guard);
            }
            Err(error) => {
                let problem = system("The gateway's name servers cannot be put in force", &error);
                // What is still in force is worse than what is not.
                return Err(installed.undo(journal).await.err().unwrap_or(problem));
            }
        }
        Ok((installed, device))
    }

    /// True when a welcome asks for exactly what is in force.
    pub fn fits(&self, options: &Options, welcome: &Welcome) -> bool {
        self.plan == plan(options, welcome) && self.servers == servers(options, welcome)
    }

    /// Puts another welcome in force in the same interface, where only routes and names differ. False when the
    /// interface has to be made anew; what is in force then can only be undone.
    ///
    /// # Errors
    /// One sentence with its code, for name servers that cannot be put in force; the old ones are not any more.
    pub async fn change(
        &mut self,
        options: &Options,
        welcome: &Welcome,
        journal: &mut Journal,
    ) -> Result<bool, Problem> {
        let (wanted, servers) = (plan(options, welcome), servers(options, welcome));
        if !self.plan.is_same_interface(&wanted) {
            return Ok(false);
        }
        match self.routes.change(&self.plan, &wanted, journal).await {
            Ok(true) => self.plan = wanted,
            Ok(false) => return Ok(false),
            Err(error) => {
                tracing::debug!(%error, "the routes cannot be changed in place");
                return Ok(false);
            }
        }
        if self.servers != servers {
            let refused = |error| system("The gateway's name servers cannot be put in force", &error);
            if let Some(guard) = self.dns.take() {
                guard.undo(journal).await.map_err(refused)?;
            }
            if let Some(servers) = &servers {
                self.dns = Some(DnsGuard::apply(servers, self.routes.index(), journal).await.map_err(refused)?);
            }
            self.servers = servers;
        }
        let notes = self.routes.note().into_iter().chain(self.dns.as_ref().and_then(DnsGuard::note));
        self.notes = notes.map(str::to_owned).collect();
        Ok(true)
    }

    /// Undoes everything, also after a part of it has failed.
    ///
    /// # Errors
    /// The first thing that the OS refused. It stays in the journal for the next start.
    pub async fn undo(self, journal: &mut Journal) -> Result<(), Problem> {
        const HINT: &str = "Restart the helper, which tries again, and look at its log";
        let names = match self.dns {
            Some(guard) => guard.undo(journal).await.map_err(|error| {
                tracing::error!(%error, "the resolver could not be put back");
                let file = self.servers.map(|servers| servers.file).unwrap_or_default();
                let sentence = format!("The resolver ({}) could not be put back as it was: {error}", file.display());
                Problem::new(code::SYSTEM).because(sentence).hint(HINT)
            }),
            None => Ok(()),
        };
        let routes = self.routes.undo(journal).await.map_err(|error| {
            tracing::error!(%error, "the routes could not be put back");
            let sentence = format!("The routes could not be put back as they were: {error}");
            Problem::new(code::SYSTEM).because(sentence).hint(HINT)
        });
        names.and(routes)
    }

    /// What goes through the tunnel.
    pub fn protection(&self) -> Protection {
        Protection {
            ipv4: self.plan.is_full_v4(),
            ipv6: self.plan.is_full(), // carried, or refused at once
            dns: self.dns.is_some(),
            kill_switch: false, // `service` knows
        }
    }

    /// The interface's name.
    pub fn interface(&self) -> &str {
        &self.plan.device
    }

    /// What goes into the tunnel, for the kill switch to hold back while there is none.
    pub fn carried(&self) -> Carried {
        let only = if self.plan.is_full() { vec![] } else { self.plan.carried() };
        Carried { only, excluded: self.plan.excluded.clone() }
    }

    /// The gateway's name servers, which only the tunnel reaches.
    pub fn name_servers(&self) -> &[IpAddr] {
        self.servers.as_ref().map_or(&[], |servers| &servers.servers)
    }

    /// Waits until another program has taken the resolver. Cancel-safe.
    pub async fn resolver_taken(&mut self) {
        match &mut self.dns {
            Some(guard) => guard.taken().await,
            None => std::future::pending().await,
        }
    }

    /// Takes the resolver back after [`Self::resolver_taken`].
    pub fn retake_resolver(&mut self, journal: &mut Journal) {
        let (Some(guard), Some(servers)) = (&mut self.dns, &self.servers) else { return };
        let before = guard.note().map(str::to_owned);
        match guard.retake(servers, journal) {
            Ok(()) => tracing::info!("another program wrote the resolver's file"),
            Err(error) => tracing::warn!(%error, "the resolver's file cannot be taken back"),
        }
        if guard.note() != before.as_deref() {
            self.notes.extend(guard.note().map(str::to_owned));
        }
    }

    /// Names are looked up at the gateway, as far as that can be seen.
    pub fn looks_up_names_inside(&self) -> bool {
        self.dns.as_ref().is_some_and(DnsGuard::is_in_force)
    }

    /// The resolver's file as the network wants it, where the gateway's servers have taken its place.
    pub fn resolver_before(&self) -> Option<Vec<u8>> {
        self.dns.as_ref().and_then(DnsGuard::before)
    }

    /// What could not be done, in sentences.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

fn plan(options: &Options, welcome: &Welcome) -> Plan {
    let mut plan = Plan {
        device: options.device.clone(),
        ipv4: welcome.ipv4,
        ipv6: welcome.ipv6,
        mtu_bytes: FIRST_MTU_BYTES,
        routes: welcome.routes.clone(),
        excluded: welcome.excluded_routes.clone(),
        networks: welcome.networks.clone(),
        fwmark: options.fwmark,
        overlap: options.overlap,
    };
    // The gateway's name servers are asked through its tunnel, also when little else is.
    for server in &welcome.dns_servers {
        if !plan.routes.iter().chain(&plan.networks).any(|net| net.contains(server)) {
            plan.routes.push(IpNet::from(*server));
        }
    }
    plan
}

fn servers(options: &Options, welcome: &Welcome) -> Option<Servers> {
    let servers = welcome.dns_servers.clone();
    (!servers.is_empty()).then(|| Servers {
        file: options.resolver.clone(),
        device: options.device.clone(),
        addresses: plan(options, welcome).whole(),
        servers,
        domains: welcome.dns_domains.clone(),
        // In a full tunnel the network's own servers are beside it.
        all: welcome.dns_domains.is_empty() || plan(options, welcome).is_full(),
    })
}
