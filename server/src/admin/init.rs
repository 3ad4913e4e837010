//! `init`: a gateway from nothing, with no question asked. A second one changes nothing.

use std::fmt::{self, Write as _};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use culvert_tunnel::identity::{Authority, DeviceId};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::Serialize;

use super::ca::{Passphrase, authority_of};
use super::invite::{InviteRequest, Invited};
use super::service::{self, Service};
use super::{AdminError, SCHEMA, invite, is_chosen, state_dir};
use crate::addresses::Pool;
use crate::config::{Config, Endpoint, Ipv6, KEYS, Loaded, Value};
use crate::files;
use crate::fleet::FleetError;
use crate::interface::{LocalNetwork, Netlink, check_overlap, choose_ipv4, choose_ipv6};
use crate::owner;
use crate::registry::{Meta, Registry};
use crate::settings::Settings;
use crate::state::StateDir;

/// What the command line asks.
#[derive(Clone, Debug)]
pub struct InitRequest {
    /// `--invite NAME`: make the first invitation too.
    pub invite: Option<String>,
    /// `--ca FILE`: take part in a registry that other gateways share; the backup has their CA.
    pub join: Option<(PathBuf, Passphrase)>,
    /// `--dry-run`: only say what would be done.
    pub dry_run: bool,
    /// Start the package's unit, where it is installed; not with `--no-start`.
    pub start: bool,
    /// Write the commented configuration, unless there is one.
    pub write_config: bool,
}

/// What `init` did.
#[derive(Clone, Debug, Serialize)]
pub struct Initialised {
    /// [`SCHEMA`].
    pub schema: u32,
    /// False when there was a gateway already, or only a plan was wanted.
    pub changed: bool,
    /// What clients dial, best first.
    pub endpoints: Vec<String>,
    /// The inner networks.
    pub networks: Vec<String>,
    /// SHA-256 of the CA's public key, as invitations carry it.
    pub ca_pin: Option<String>,
    /// The configuration file.
    pub config: PathBuf,
    /// The state directory.
    pub state_dir: PathBuf,
    /// The UDP port to open in a firewall.
    pub port: u16,
    /// The UDP port the gateway listens on; `port` may be another in front of a port forward.
    pub listen_port: u16,
    /// How it stands with the package's unit.
    pub service: Service,
    /// The first invitation.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub invited: Option<Invited>,
}

/// This host's own address is of no use to clients elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeedsEndpoint {
    /// The address it sends from; `None` when it has no route at all.
    pub address: Option<IpAddr>,
}

impl fmt::Display for NeedsEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "This host is behind NAT (its address is {address}).")?,
            None => f.write_str("This host has no route to the internet.")?,
        }
        f.write_str(" Say its public name: culvert-server init --endpoint vpn.example.org")
    }
}

/// Makes a gateway.
///
/// # Errors
/// [`AdminError`]; nothing has changed then.
pub async fn init(loaded: &Loaded, request: &InitRequest) -> Result<Initialised, AdminError> {
    let config = &loaded.config;
    let state = state_dir(config);
    if state.is_initialised() {
        let registry = state.registry().await?;
        if let Some(shared) = registry.shared()
            && shared.meta(Meta::Authority).await?.is_none()
            && !request.dry_run
        {
            state.establish(shared.store(), &facts(&choose(config).await?)?).await?;
        }
        let settings = Settings::resolve(config, &registry).await?;
        registry.close().await;
        let pin = state.authority()?.pin().to_string();
        return Ok(told(loaded, &settings, Some(pin), false));
    }
    let name = request.invite.as_deref().map(invite::check_name).transpose()?;
    let joined = match &request.join {
        Some((file, passphrase)) => Some(fleet(&state, config, file, passphrase).await?),
        None => None,
    };
    let settings = match &joined {
        Some((settings, _)) => settings.clone(),
        None => choose(config).await?,
    };
    if request.dry_run {
        return Ok(told(loaded, &settings, None, false));
    }
    let lock = state.lock()?;
    let wrote = if request.write_config { owner::as_caller(|| write_config(loaded, &settings))? } else { None };
    let names = settings.leaf_names();
    let made = match &joined {
        Some((_, authority)) => state.join(&lock, authority, &names),
        None => state.create(&lock, settings.display_name(), &names, &facts(&settings)?).await,
    };
    if let Err(error) = made {
        if let Some(path) = wrote {
            let _ = owner::as_caller(|| fs::remove_file(path)); // ours, and of no use now
        }
        return Err(error.into());
    }
    drop(lock);
    let mut done = told(loaded, &settings, Some(state.authority()?.pin().to_string()), true);
    if let Some(user) = name {
        done.invited = Some(invite::invite(config, &InviteRequest::for_user(&user)).await?);
    }
    if request.start && done.service == Service::Left {
        done.service = service::start();
    }
    Ok(done)
}

fn told(loaded: &Loaded, settings: &Settings, ca_pin: Option<String>, changed: bool) -> Initialised {
    let pool = settings.pool;
    Initialised {
        schema: SCHEMA,
        changed,
        endpoints: settings.endpoints(),
        networks: std::iter::once(pool.ipv4().to_string())
            .chain(pool.ipv6().map(|network| network.to_string()))
            .collect(),
        ca_pin,
        config: loaded.path.clone(),
        state_dir: loaded.config.state_dir.clone(),
        port: settings.endpoint.port.unwrap_or(settings.port),
        listen_port: settings.port,
        service: service::find(loaded),
        invited: None,
    }
}

impl Initialised {
    /// One sentence when clients will dial another port than the gateway listens on.
    pub fn port_note(&self) -> Option<String> {
        let Self { port, listen_port, .. } = self;
        (port != listen_port).then(|| {
            format!(
                "clients will dial UDP {port}, the gateway listens on {listen_port}: forward the port or set \
                 listen.address = \"[::]:{port}\""
            )
        })
    }

    /// For people.
    pub fn text(&self, dry_run: bool) -> String {
        let mut text = String::new();
        let usual = self.config == Path::new(crate::config::DEFAULT_PATH);
        let flag = if usual { String::new() } else { format!(" --config {}", self.config.display()) };
        let head = match (self.changed, dry_run && self.ca_pin.is_none()) {
            (true, _) => "This gateway is ready.",
            (false, true) => "This would be the gateway; nothing was changed.",
            (false, false) => "There is a gateway here already; nothing was changed.",
        };
        let _ = writeln!(text, "{head}"); // here and below: writing to a String cannot fail
        let mut line = |what: &str, value: String| {
            let _ = writeln!(text, "    {what:<15}{value}");
        };
        line("Endpoint:", self.endpoints.join(", "));
        line("Inside:", self.networks.join(", "));
        line("Configuration:", self.config.display().to_string());
        line("State:", self.state_dir.display().to_string());
        if let Some(pin) = &self.ca_pin {
            line("CA pin:", pin.clone());
        } else if self.service == Service::Left {
            line("Service:", format!("{}, which init would start now and at every boot", service::UNIT));
        }
        if self.changed {
            let then = match self.service {
                Service::Started => ". The gateway runs, and starts with this machine".to_owned(),
                Service::Left | Service::Failed => format!(", then start it: systemctl enable --now {}", service::UNIT),
                Service::None => format!(", then start it: culvert-server{flag} run"),
            };
            let _ = writeln!(text, "Open {}/udp in the firewall of your provider{then}.", self.port);
        } else if !dry_run {
            let _ = writeln!(
                text,
                "To invite somebody: culvert-server{flag} invite NAME. To change the gateway, edit {}.",
                self.config.display()
            );
        }
        if let Some(invited) = &self.invited {
            text.push_str(&invited.text());
        }
        text
    }
}

/// Endpoint and networks: the configuration's, or such as fit this host.
async fn choose(config: &Config) -> Result<Settings, AdminError> {
    let endpoint = match &config.endpoint {
        Some(endpoint) => endpoint.clone(),
        None => public_endpoint()?,
    };
    let locals = Netlink::open()?.local_networks().await?;
    let ipv4 = match config.ipv4 {
        Some(network) => network,
        None => random_ipv4(&locals)?,
    };
    let ipv6 = match config.ipv6 {
        Ipv6::Off => None,
        Ipv6::Network(network) => Some(network),
        Ipv6::Auto => Some(random_ipv6()?),
    };
    let pool = Pool::new(ipv4, ipv6);
    check_overlap(&pool, &locals)?;
    Ok(Settings::new(config, endpoint, pool))
}

/// What the others have: their networks, and their CA, which the backup has to hold.
async fn fleet(
    state: &StateDir,
    config: &Config,
    file: &Path,
    passphrase: &Passphrase,
) -> Result<(Settings, Authority), AdminError> {
    let authority = authority_of(file, passphrase)?;
    let registry = state.shared_registry().await?.ok_or(AdminError::NotShared)?;
    let theirs = registry.meta(Meta::Authority).await?.ok_or(AdminError::NobodyThere)?;
    let own = authority.pin().to_string();
    if own != theirs {
        return Err(FleetError::OtherAuthority { own, theirs }.into());
    }
    let endpoint = match &config.endpoint {
        Some(endpoint) => endpoint.clone(),
        None => public_endpoint()?,
    };
    let config = Config { endpoint: Some(endpoint), ipv4: None, ..config.clone() };
    let settings = Settings::resolve(&config, &registry).await?;
    registry.close().await;
    check_overlap(&settings.pool, &Netlink::open()?.local_networks().await?)?;
    Ok((settings, authority))
}

fn random_ipv4(locals: &[LocalNetwork]) -> Result<Ipv4Net, AdminError> {
    let seed = DeviceId::generate()?;
    let mut state = u64::from_be_bytes(*seed.as_bytes().first_chunk().expect("16 bytes hold 8")) | 1;
    let random = || {
        // xorshift64: spreads one random seed; nothing secret hangs on a private network's number.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u32
    };
    choose_ipv4(locals, random).ok_or(AdminError::NoNetwork)
}

fn random_ipv6() -> Result<Ipv6Net, AdminError> {
    let random = DeviceId::generate()?;
    Ok(choose_ipv6(u64::from_be_bytes(*random.as_bytes().first_chunk().expect("16 bytes hold 8"))))
}

/// This host's own address, if clients elsewhere can reach it. Sends nothing: connecting a UDP
/// socket only asks the kernel for the route.
fn public_endpoint() -> Result<Endpoint, AdminError> {
    let own = |bind: IpAddr, towards: IpAddr| -> Option<IpAddr> {
        let socket = UdpSocket::bind((bind, 0)).ok()?;
        socket.connect((towards, 53)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let ipv4 = own(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(1, 1, 1, 1).into());
    let ipv6 = own(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111).into());
    match [ipv4, ipv6].into_iter().flatten().find(|address| is_public(*address)) {
        Some(address) => Ok(Endpoint { host: address.to_string(), port: None }),
        None => Err(AdminError::NeedsEndpoint(NeedsEndpoint { address: ipv4.or(ipv6) })),
    }
}

/// Not private, shared, local, or for documentation (IANA special-purpose registries).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let shared: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_documentation()
                || v4.is_multicast()
                || shared.contains(&v4))
        }
        IpAddr::V6(v6) => {
            let global = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
            let documentation = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32);
            global.contains(&v6) && !documentation.contains(&v6)
        }
    }
}

fn facts(settings: &Settings) -> Result<Vec<(Meta, String)>, AdminError> {
    // The random bits of a device id do for the gateway's own as well.
    let mut facts = vec![
        (Meta::GatewayId, DeviceId::generate()?.to_string()),
        (Meta::Endpoint, settings.endpoint.to_string()),
        (Meta::Ipv4, settings.pool.ipv4().to_string()),
    ];
    facts.extend(settings.pool.ipv6().map(|network| (Meta::Ipv6, network.to_string())));
    Ok(facts)
}

/// Writes the commented configuration unless there is one. Returns its path if it was written.
fn write_config(loaded: &Loaded, settings: &Settings) -> Result<Option<PathBuf>, AdminError> {
    if loaded.found {
        return Ok(None);
    }
    let path = &loaded.path;
    let failed = |error| AdminError::Write { path: path.clone(), error };
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed)?;
    match files::write_new(path, config_text(loaded, settings).as_bytes(), 0o644) {
        Ok(()) => Ok(Some(path.clone())),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(AdminError::Exists(path.clone())),
        Err(error) => Err(failed(error)),
    }
}

fn config_text(loaded: &Loaded, settings: &Settings) -> String {
    let mut text = String::from(
        "# Culvert gateway. Every key is optional; a # before a key shows its default.\n\
         # culvert-server check-config tells what is wrong, --show what is in force and why.\n",
    );
    let mut section = "";
    for (key, value, source) in loaded.layers.iter() {
        if key.section != section {
            section = key.section;
            let _ = write!(text, "\n[{section}]\n"); // writing to a String cannot fail
        }
        let chosen = match (key.section, key.name) {
            ("endpoint", "name") => Some(settings.endpoint.to_string()),
            ("network", "ipv4") => Some(settings.pool.ipv4().to_string()),
            ("network", "ipv6") => settings.pool.ipv6().map(|network| network.to_string()),
            _ => None,
        };
        let _ = match chosen {
            Some(chosen) => writeln!(text, "{} = {}  # {}", key.name, Value::Text(chosen), key.help),
            None if is_chosen(source) => writeln!(text, "{} = {value}  # {}", key.name, key.help),
            None => writeln!(text, "# {} = {}  # {}", key.name, key.default, key.help),
        };
    }
    debug_assert!(KEYS.len() < text.lines().count());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_others_can_reach_are_public() {
        for address in ["203.0.112.7", "8.8.8.8", "2606:4700::1"] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "10.0.0.1",
            "172.16.3.4",
            "192.168.1.1",
            "100.64.9.9",
            "127.0.0.1",
            "169.254.1.1",
            "fd00::1",
            "fe80::1",
            "::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn the_sentence_says_what_to_type() {
        let told = NeedsEndpoint { address: Some("10.0.0.1".parse().unwrap()) }.to_string();
        assert_eq!(
            told,
            "This host is behind NAT (its address is 10.0.0.1). Say its public name: \
             culvert-server init --endpoint vpn.example.org"
        );
    }
}
