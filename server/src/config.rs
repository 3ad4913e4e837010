//! What the operator chose, in domain types.
//!
//! [`Config::load`] is the only way in: it joins the layers (`layers`), checks every value once
//! and reports every problem at once, each with its place. Every key is optional. Not here: what
//! depends on the machine, such as overlapping networks (`overlap`).

mod endpoint;
mod families;
mod keys;
mod layers;
mod names;
mod policies;
mod registry;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use culvert_tunnel::congestion::Congestion;
use culvert_tunnel::identity::AUTHORITY_LIFETIME;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use tracing_subscriber::filter::{LevelFilter, Targets};

pub use endpoint::{Endpoint, NotAnEndpoint};
pub use families::Translated;
pub use keys::{CONFIG_VARIABLE, KEYS, Key, Kind};
pub use layers::{Complaint, Layers, Problem, Source, Value};
pub use names::{Dns, NameServer, Upstream, Zone};
pub use registry::{Database, NotADatabase};

use crate::bans::{self, Limits};
use crate::log::Addresses;
use crate::policy::Policies;
use crate::times::parse_duration;

/// Where the configuration is when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/culvert-server/config.toml";

/// Everything an operator can choose. [`KEYS`] documents default and unit of each.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `listen.address`.
    pub listen: SocketAddr,
    /// `endpoint.name`; `None` means what `init` was given or found.
    pub endpoint: Option<Endpoint>,
    /// `endpoint.extra_names`.
    pub extra_endpoints: Vec<Endpoint>,
    /// `network.ipv4`; `None` means what `init` chose.
    pub ipv4: Option<Ipv4Net>,
    /// `network.ipv6`.
    pub ipv6: Ipv6,
    /// `network.mtu`, in bytes of one inner packet; `None` means automatic.
    pub mtu_bytes: Option<u16>,
    /// `network.isolation`.
    pub isolation: bool,
    /// `network.nat`.
    pub nat: Translated,
    /// `push.*`.
    pub push: Push,
    /// `groups` and `policy.*`, with `limits.rate`.
    pub policies: Policies,
    /// `dns.*`.
    pub dns: Dns,
    /// `limits.devices_per_user`; `None` means no limit.
    pub devices_per_user: Option<u32>,
    /// `limits.handshakes_per_second`; `None` means no limit.
    pub handshakes_per_second: Option<u32>,
    /// `limits.speedtests`; `None` means that there are none.
    pub speedtests: Option<u32>,
    /// `log.format`.
    pub log_format: LogFormat,
    /// `log.level`.
    pub log_level: Targets,
    /// `log.addresses`.
    pub log_addresses: Addresses,
    /// `log.file`; `None` means standard error alone.
    pub log_file: Option<PathBuf>,
    /// `bans.*`.
    pub bans: Limits,
    /// `state.dir`.
    pub state_dir: PathBuf,
    /// `registry.url` and `registry.password_file`; `None` means the file in the state directory.
    pub database: Option<Database>,
    /// `registry.cache_age`; zero means that nobody connects while the database does not answer.
    pub cache_age: Duration,
    /// `control.socket`.
    pub control_socket: PathBuf,
    /// `tunnel.device`.
    pub device: String,
    /// `tunnel.shards`; `None` means automatic.
    pub shards: Option<u8>,
    /// `tunnel.congestion`.
    pub congestion: Congestion,
    /// `auth.rechallenge`; `None` means never.
    pub rechallenge: Option<Duration>,
    /// `auth.device_lifetime`.
    pub device_lifetime: Duration,
    /// `metrics.listen`; `None` serves none.
    pub metrics_listen: Option<SocketAddr>,
    /// `metrics.devices`.
    pub metrics_devices: bool,
}

/// What clients are told to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// Destinations that go into the tunnel.
    pub routes: Vec<IpNet>,
    /// Destinations that stay outside even so.
    pub excluded_routes: Vec<IpNet>,
    /// DNS servers; empty leaves the client's own.
    pub dns: Vec<NameServer>,
    /// Domains that these servers answer; empty means all.
    pub domains: Vec<String>,
}

/// IPv6 inside the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6 {
    /// What `init` chose.
    Auto,
    /// None.
    Off,
    /// This network.
    Network(Ipv6Net),
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// [`LogFormat::Text`] on a terminal, else [`LogFormat::Json`].
    Auto,
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Something in it is wrong; at least one problem.
    #[error("{}", problems(.0))]
    Invalid(Vec<Problem>),
    /// A file cannot be read.
    #[error("cannot read {}: {error}", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the OS says.
        error: std::io::Error,
    },
}

fn problems(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// What the command line says about the configuration.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config`; that file must exist.
    pub config: Option<PathBuf>,
    /// Flag, section, key and text.
    pub settings: Vec<(&'static str, &'static str, &'static str, String)>,
}

/// Whether the file that the command line names has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// It has to.
    MustExist,
    /// `init` is about to write it.
    MayBeMissing,
}

/// A configuration and where each of its values came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// Their origins.
    pub layers: Layers,
    /// The main file, whether it exists or not.
    pub path: PathBuf,
    /// True when the main file was there.
    pub found: bool,
}

impl Config {
    /// Reads files, environment and flags.
    ///
    /// Drop-ins are the `*.toml` in the folder beside the main file that is called like it, with
    /// `.d` for `.toml` (`config.d`), in the order of their names.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every problem found, [`ConfigError::Unreadable`] for the
    /// first file that cannot be read.
    pub fn load(
        flags: &Flags,
        environment: impl IntoIterator<Item = (String, String)>,
        named: Named,
    ) -> Result<Loaded, ConfigError> {
        let path = flags.config.clone().unwrap_or_else(|| DEFAULT_PATH.into());
        let optional = flags.config.is_none() || named == Named::MayBeMissing;
        let mut layers = Layers::defaults();
        let mut problems = Vec::new();
        let found = match std::fs::read_to_string(&path) {
            Ok(text) => {
                problems.extend(layers.add_file(&path, &text));
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && optional => false,
            Err(error) => return Err(ConfigError::Unreadable { path, error }),
        };
        for path in drop_ins(&path)? {
            let text = std::fs::read_to_string(&path)
                .map_err(|error| ConfigError::Unreadable { path: path.clone(), error })?;
            problems.extend(layers.add_file(&path, &text));
        }
        problems.extend(layers.add_environment(environment));
        for (flag, section, name, text) in &flags.settings {
            problems.extend(layers.add_flag(flag, section, name, text));
        }
        let config = Self::from_layers(&layers, &mut problems);
        match config {
            Some(config) if problems.is_empty() => Ok(Loaded { config, layers, path, found }),
            _ => Err(ConfigError::Invalid(problems)),
        }
    }

    /// Gives every value its meaning; `None` when one has none (and says so in `problems`).
    fn from_layers(layers: &Layers, problems: &mut Vec<Problem>) -> Option<Self> {
        let mut read = Reader { layers, problems };
        let listen = read.text("listen", "address", "an address and a port, such as \"[::]:443\"", listen_address);
        let name = read.text("endpoint", "name", ENDPOINT, |text| or_empty(text, |text| text.parse().ok()));
        let extra_endpoints = read.list("endpoint", "extra_names", ENDPOINT, |text| text.parse().ok());
        let ipv4 =
            read.text("network", "ipv4", "\"auto\" or a network such as \"100.77.3.0/24\" (/8 to /29)", |text| {
                if text == "auto" { Some(None) } else { inner_ipv4(text).map(Some) }
            });
        let ipv6 =
            read.text("network", "ipv6", "\"auto\", \"\" or a /64 such as \"fd4e:9a1c::/64\"", |text| match text {
                "auto" => Some(Ipv6::Auto),
                "" => Some(Ipv6::Off),
                network => inner_ipv6(network).map(Ipv6::Network),
            });
        let mtu_bytes = read.text("network", "mtu", "\"auto\" or 1280 to 9000 bytes", |text| match text {
            "auto" => Some(None),
            number => number.parse().ok().filter(|bytes| (1280..=9000).contains(bytes)).map(Some),
        });
        let isolation = read.switch("network", "isolation");
        let nat = read.list("network", "nat", "\"ipv4\" or \"ipv6\"", |text| {
            ["ipv4", "ipv6"].contains(&text).then(|| text.to_owned())
        });
        let nat = Translated {
            ipv4: nat.iter().any(|family| family == "ipv4"),
            ipv6: nat.iter().any(|family| family == "ipv6"),
        };
        let routes = read.list("push", "routes", "\"default\" or a network such as \"10.1.0.0/16\"", destination);
        let excluded_routes = read.list("push", "excluded_routes", "a network such as \"192.168.0.0/16\"", |text| {
            text.parse::<IpNet>().ok().map(|network| vec![network.trunc()])
        });
        let mut dns = read.list("push", "dns", "\"gateway\" or an address", NameServer::parse);
        let domains = read.list("push", "domains", "a domain name", |text| {
            let text = text.trim_end_matches('.');
            endpoint::is_host_name(text).then(|| text.to_ascii_lowercase())
        });
        let everything = routes.iter().flatten().any(|network| network.prefix_len() == 0);
        if *layers.get("push", "dns").2 == Source::Default && !everything && domains.is_empty() {
            dns.clear(); // who sends little into the tunnel keeps his own name servers unless somebody says otherwise
        }
        let resolver = read.resolver();
        let devices_per_user = read.number("limits", "devices_per_user", "0 (no limit) or more");
        let rate = read.text("limits", "rate", policies::RATE, policies::rate);
        let handshakes_per_second = read.number("limits", "handshakes_per_second", "0 (no limit) or more");
        let speedtests = read.number("limits", "speedtests", "0 (none) or more");
        let metrics_listen =
            read.text("metrics", "listen", "\"\" or an address and a port, such as \"127.0.0.1:9580\"", |text| {
                or_empty(text, listen_address)
            });
        let metrics_devices = read.switch("metrics", "devices");
        let log_format = read.text("log", "format", "\"auto\", \"text\" or \"json\"", |text| match text {
            "auto" => Some(LogFormat::Auto),
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            _ => None,
        });
        let log_level = read.text("log", "level", "a level (error, warn, info, debug, trace) or directives", |text| {
            // `Targets` takes any word for a module: a misspelt level would silence everything.
            let known = |part: &str| part.contains('=') || part.trim().parse::<LevelFilter>().is_ok();
            text.split(',').all(known).then(|| text.parse::<Targets>().ok()).flatten()
        });
        let log_addresses = read.text("log", "addresses", "\"full\", \"prefix\" or \"none\"", |text| match text {
            "full" => Some(Addresses::Full),
            "prefix" => Some(Addresses::Prefix),
            "none" => Some(Addresses::None),
            _ => None,
        });
        let log_file = read.text("log", "file", "\"\" or an absolute path", |text| or_empty(text, absolute));
        let failures = read.number("bans", "failures", "0 (nobody is banned) or more");
        let time = |text: &str| parse_duration(text).filter(|time| !time.is_zero());
        let window = read.text("bans", "window", "a time such as \"5m\"", time);
        let ban = read.text("bans", "duration", "a time such as \"10m\", at most \"24h\"", |text| {
            time(text).filter(|time| *time <= bans::LONGEST)
        });
        let exempt = read.list("bans", "exempt", "an address, or a network such as \"198.51.100.0/24\"", bans::prefix);
        let state_dir = read.text("state", "dir", "an absolute path", absolute);
        let database = read.database();
        let cache_age = read.text("registry", "cache_age", "0, or a time such as \"24h\"", parse_duration);
        let control_socket = read.text("control", "socket", "an absolute path of at most 100 bytes", |text| {
            absolute(text).filter(|_| text.len() <= SOCKET_PATH_MAX)
        });
        let device = read.text("tunnel", "device", "an interface name (1 to 15 of a-z, 0-9, - and _)", |text| {
            let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            ((1..=15).contains(&text.len()) && text.bytes().all(letter)).then(|| text.to_owned())
        });
        let shards = read.text("tunnel", "shards", "\"auto\" or 1 to 64", |text| match text {
            "auto" => Some(None),
            number => number.parse().ok().filter(|count| (1..=64).contains(count)).map(Some),
        });
        let congestion = read.text("tunnel", "congestion", "\"none\", \"cubic\" or \"bbr\"", |text| text.parse().ok());
        let rechallenge = read.text("auth", "rechallenge", "0, or a time such as \"30m\" or \"1h\"", |text| {
            parse_duration(text).map(|every| (!every.is_zero()).then_some(every))
        });
        let device_lifetime = read.text("auth", "device_lifetime", "a time from \"30s\" to \"3650d\"", |text| {
            parse_duration(text).filter(|life| (DEVICE_LIFETIME_MIN..=AUTHORITY_LIFETIME).contains(life))
        });
        Some(Self {
            listen: listen?,
            endpoint: name?,
            extra_endpoints,
            ipv4: ipv4?,
            ipv6: ipv6?,
            mtu_bytes: mtu_bytes?,
            isolation,
            nat,
            push: Push { routes: routes.concat(), excluded_routes: excluded_routes.concat(), dns, domains },
            policies: Policies { bytes_per_second: rate?, ..layers.policies().clone() },
            dns: resolver?,
            devices_per_user: devices_per_user?,
            handshakes_per_second: handshakes_per_second?,
            speedtests: speedtests?,
            log_format: log_format?,
            log_level: log_level?,
            log_addresses: log_addresses?,
            log_file: log_file?,
            bans: Limits { failures: failures?.unwrap_or(0), window: window?, duration: ban?, exempt },
            state_dir: state_dir?,
            database: database?,
            cache_age: cache_age?,
            control_socket: control_socket?,
            device: device?,
            shards: shards?,
            congestion: congestion?,
            rechallenge: rechallenge?,
            device_lifetime: device_lifetime?,
            metrics_listen: metrics_listen?,
            metrics_devices,
        })
    }
}

const ENDPOINT: &str = "a host name or an address, with or without a port";
/// Shorter, and a renewal would hardly come in time.
const DEVICE_LIFETIME_MIN: Duration = Duration::from_secs(30);
/// `sun_path` holds 108 bytes; some are kept for a temporary name beside it.
const SOCKET_PATH_MAX: usize = 100;

fn listen_address(text: &str) -> Option<SocketAddr> {
    text.parse().ok().filter(|address: &SocketAddr| address.port() != 0)
}

fn or_empty<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Option<T>> {
    if text.is_empty() { Some(None) } else { parse(text).map(Some) }
}

fn inner_ipv4(text: &str) -> Option<Ipv4Net> {
    let network: Ipv4Net = text.parse().ok()?;
    let fits = (8..=29).contains(&network.prefix_len()) && network.addr() == network.network();
    (fits && !network.addr().is_multicast() && !network.addr().is_loopback() && !network.addr().is_unspecified())
        .then_some(network)
}

fn inner_ipv6(text: &str) -> Option<Ipv6Net> {
    let network: Ipv6Net = text.parse().ok()?;
    let address = network.addr();
    let usable = !address.is_multicast() && !address.is_unicast_link_local() && !address.is_unspecified();
    (network.prefix_len() == 64 && address == network.network() && usable).then_some(network)
}

fn destination(text: &str) -> Option<Vec<IpNet>> {
    if text == "default" {
        return Some(vec![Ipv4Net::default().into(), Ipv6Net::default().into()]);
    }
    text.parse::<IpNet>().ok().map(|network| vec![network.trunc()])
}

fn absolute(text: &str) -> Option<PathBuf> {
    Path::new(text).is_absolute().then(|| text.into())
}

fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let folder = main.with_extension("d");
    let unreadable = |error| ConfigError::Unreadable { path: folder.clone(), error };
    let mut files = Vec::new();
    match std::fs::read_dir(&folder) {
        Ok(entries) => {
            for entry in entries {
                let path = entry.map_err(unreadable)?.path();
                if path.extension().is_some_and(|extension| extension == "toml") {
                    files.push(path);
                }
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(unreadable(error)),
    }
    files.sort();
    Ok(files)
}

/// Reads one setting at a time; what has no meaning is collected, so that all is told at once.
struct Reader<'a> {
    layers: &'a Layers,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn text<T>(
        &mut self,
        section: &str,
        name: &str,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let Value::Text(text) = self.layers.get(section, name).1 else { unreachable!("{section}.{name} is text") };
        let parsed = parse(text);
        if parsed.is_none() {
            self.complain(section, name, expected);
        }
        parsed
    }

    fn list<T>(
        &mut self,
        section: &str,
        name: &str,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        let Value::List(items) = self.layers.get(section, name).1 else { unreachable!("{section}.{name} is a list") };
        let parsed: Option<Vec<T>> = items.iter().map(|item| parse(item)).collect();
        parsed.unwrap_or_else(|| {
            self.complain(section, name, expected);
            Vec::new()
        })
    }

    fn switch(&self, section: &str, name: &str) -> bool {
        let Value::Switch(on) = self.layers.get(section, name).1 else { unreachable!("{section}.{name} is a switch") };
        *on
    }

    /// A limit; 0 is none.
    fn number(&mut self, section: &str, name: &str, expected: &'static str) -> Option<Option<u32>> {
        let Value::Number(number) = self.layers.get(section, name).1 else { unreachable!("{section}.{name} counts") };
        let parsed = u32::try_from(*number).ok().map(|limit| (limit > 0).then_some(limit));
        if parsed.is_none() {
            self.complain(section, name, expected);
        }
        parsed
    }

    fn resolver(&mut self) -> Option<Dns> {
        let upstream = self.list("dns", "upstream", "\"system\" or an address", Upstream::parse);
        let zones =
            self.list("dns", "zones", "a domain and its server, such as \"corp.example=10.0.0.53\"", Zone::parse);
        let inner =
            self.text("dns", "inner", "a domain such as \"internal\", or \"\"", |text| or_empty(text, names::domain))?;
        if zones.iter().any(|zone| Some(&zone.name) == inner.as_ref()) {
            self.complain("dns", "zones", "a domain other than dns.inner, which the gateway answers itself");
        }
        Some(Dns { upstream, zones, inner })
    }

    /// What is wrong with the URL is told without it: it may hold a password by mistake.
    fn database(&mut self) -> Option<Option<Database>> {
        let file =
            self.text("registry", "password_file", "\"\" or an absolute path", |text| or_empty(text, absolute))?;
        let (key, Value::Text(url), source) = self.layers.get("registry", "url") else { return None }; // it is text
        if url.is_empty() {
            return Some(None);
        }
        match Database::new(url, file) {
            Ok(database) => Some(Some(database)),
            Err(error) => {
                let what = Complaint::Secret { section: key.section, name: key.name, error };
                self.problems.push(Problem { at: source.clone(), what });
                None
            }
        }
    }

    fn complain(&mut self, section: &str, name: &str, expected: &'static str) {
        let (key, value, source) = self.layers.get(section, name);
        let what = Complaint::Meaningless { section: key.section, name: key.name, value: value.clone(), expected };
        self.problems.push(Problem { at: source.clone(), what });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_a_configuration() {
        let config = load("", &[]).unwrap().config;
        assert_eq!(config.listen, "[::]:443".parse().unwrap());
        assert_eq!(config.push.routes, ["0.0.0.0/0".parse::<IpNet>().unwrap(), "::/0".parse().unwrap()]);
        assert_eq!((config.ipv4, config.ipv6, config.endpoint), (None, Ipv6::Auto, None));
        assert!(config.isolation);
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let told = load("[network]\nipv4 = \"100.77.3.1/24\"\nmtu = 900\n[tunnel]\nshards = 0\n", &[]).unwrap_err();
        let told = told.to_string();
        assert_eq!(told.lines().count(), 3, "{told}");
        assert!(told.contains("gw.toml:2:8: network.ipv4 = \"100.77.3.1/24\" is not \"auto\" or a network"), "{told}");
        assert!(told.contains("gw.toml:3:7: network.mtu"), "{told}");
    }

    #[test]
    fn a_family_that_is_not_named_is_routed() {
        let nat = |text| load(text, &[]).unwrap().config.nat;
        assert_eq!(nat(""), Translated::BOTH);
        assert_eq!(nat("[network]\nnat = [\"ipv4\"]\n"), Translated { ipv4: true, ipv6: false });
        assert_eq!(nat("[network]\nnat = []\n"), Translated { ipv4: false, ipv6: false });
        assert!(
            load("[network]\nnat = [\"nat64\"]\n", &[]).unwrap_err().to_string().contains("gw.toml:2:7: network.nat")
        );
    }

    #[test]
    fn clients_ask_the_gateway_unless_they_send_little_into_the_tunnel() {
        let dns = |text| load(text, &[]).unwrap().config.push.dns;
        assert_eq!(dns(""), [NameServer::Gateway]);
        assert_eq!(dns("[push]\nroutes = [\"10.1.0.0/16\"]\n"), []);
        assert_eq!(dns("[push]\nroutes = [\"10.1.0.0/16\"]\ndomains = [\"corp.example\"]\n"), [NameServer::Gateway]);
        assert_eq!(dns("[push]\nroutes = [\"10.1.0.0/16\"]\ndns = [\"gateway\"]\n"), [NameServer::Gateway]);
        assert_eq!(dns("[push]\ndns = []\n"), []);
        let both = [NameServer::Address("10.0.0.53".parse().unwrap()), NameServer::Gateway];
        assert_eq!(dns("[push]\ndns = [\"10.0.0.53\", \"gateway\"]\n"), both);
    }

    #[test]
    fn a_zone_cannot_take_the_devices_names() {
        let told = load("[dns]\nzones = [\"internal=10.0.0.53\"]\n", &[]).unwrap_err().to_string();
        assert!(told.contains("gw.toml:2:9: dns.zones") && told.contains("dns.inner"), "{told}");
        assert!(load("[dns]\nzones = [\"internal=10.0.0.53\"]\ninner = \"\"\n", &[]).is_ok());
    }

    #[test]
    fn the_environment_wins_over_drop_ins_and_drop_ins_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("gw.toml");
        std::fs::write(&main, "[listen]\naddress = \"127.0.0.1:1001\"\n[log]\nlevel = \"warn\"\n").unwrap();
        std::fs::create_dir(folder.path().join("gw.d")).unwrap();
        std::fs::write(folder.path().join("gw.d/10.toml"), "[listen]\naddress = \"127.0.0.1:1002\"\n").unwrap();
        std::fs::write(folder.path().join("gw.d/notes.txt"), "not toml").unwrap();
        let flags = Flags { config: Some(main), ..Flags::default() };

        let config = Config::load(&flags, [], Named::MustExist).unwrap().config;
        assert_eq!(config.listen.port(), 1002);
        assert_eq!(config.log_level, "warn".parse().unwrap());
        let variable = ("CULVERT_SERVER_LISTEN__ADDRESS".to_owned(), "127.0.0.1:1003".to_owned());
        let config = Config::load(&flags, [variable], Named::MustExist).unwrap().config;
        assert_eq!(config.listen.port(), 1003);
    }

    #[test]
    fn a_missing_file_is_an_error_only_when_it_was_named() {
        let flags = Flags { config: Some("/nonexistent/gw.toml".into()), ..Flags::default() };
        assert!(matches!(Config::load(&flags, [], Named::MustExist), Err(ConfigError::Unreadable { .. })));
        assert!(!Config::load(&flags, [], Named::MayBeMissing).unwrap().found);
    }

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gw.toml");
        std::fs::write(&path, text).unwrap();
        let environment = environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        let flags = Flags { config: Some(path), ..Flags::default() };
        Config::load(&flags, environment, Named::MustExist)
    }
}
