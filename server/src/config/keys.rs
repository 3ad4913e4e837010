//! Every setting of the gateway: its name, its shape, its default and one line of help.
//!
//! This table is the only list of settings. The reader of files and environment (`layers`), the
//! checker and the commented file that `init` writes all walk over it.

/// The TOML types that a setting may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// A string, or a whole number in its place (`mtu = "auto"`, `mtu = 1400`).
    TextOrNumber,
    /// A whole number.
    Number,
    /// `true` or `false`.
    Switch,
    /// A list of strings. In the environment: separated by commas.
    List,
}

impl Kind {
    /// What to write, for error messages.
    pub const fn expected(self) -> &'static str {
        match self {
            Self::Text => "a string in quotes",
            Self::TextOrNumber => "a string in quotes or a whole number",
            Self::Number => "a whole number",
            Self::Switch => "true or false",
            Self::List => "a list of strings, such as [\"a\", \"b\"]",
        }
    }
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The TOML table.
    pub section: &'static str,
    /// The name in that table.
    pub name: &'static str,
    /// What it looks like.
    pub kind: Kind,
    /// Its value when nobody says anything, as TOML.
    pub default: &'static str,
    /// One line for the commented file.
    pub help: &'static str,
}

impl Key {
    /// The setting of this name, if there is one.
    pub fn find(section: &str, name: &str) -> Option<usize> {
        KEYS.iter().position(|key| key.section == section && key.name == name)
    }

    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}__{}", self.section.to_ascii_uppercase(), self.name.to_ascii_uppercase())
    }
}

/// What the names of our environment variables begin with.
pub const PREFIX: &str = "CULVERT_SERVER_";
/// The variable that names the configuration file itself; no setting.
pub const CONFIG_VARIABLE: &str = "CULVERT_SERVER_CONFIG";

macro_rules! keys {
    ($( [$section:ident] $( $name:ident: $kind:ident = $default:literal, $help:literal; )* )*) => {
        /// Every setting, by section.
        pub const KEYS: &[Key] = &[ $( $( Key {
            section: stringify!($section),
            name: stringify!($name),
            kind: Kind::$kind,
            default: $default,
            help: $help,
        }, )* )* ];
    };
}

keys! {
    [listen]
    address: Text = r#""[::]:443""#, "The one UDP address and port; [::] takes IPv4 too.";

    [endpoint]
    name: Text = r#""""#, "What invitations carry and the certificate holds: host or host:port; empty is what init found.";
    extra_names: List = "[]", "More names or addresses under which clients reach this gateway.";

    [network]
    ipv4: Text = r#""auto""#, "The network inside the tunnel; auto is the one that init chose.";
    ipv6: Text = r#""auto""#, "The same for IPv6, a /64; empty turns IPv6 inside off.";
    mtu: TextOrNumber = r#""auto""#, "Of the gateway's interface, in bytes of one inner packet; auto is 1500.";
    isolation: Switch = "true", "Clients cannot reach one another.";
    nat: List = r#"["ipv4", "ipv6"]"#, "Families that leave with this host's own address; what is not named is routed, and the network outside must know the way back.";

    [push]
    routes: List = r#"["default"]"#, "What clients send into the tunnel; default is everything.";
    excluded_routes: List = "[]", "What stays outside even so.";
    dns: List = r#"["gateway"]"#, "DNS servers for clients: addresses, or gateway for its own resolver; empty leaves theirs. With routes that are not default and no domains the default is none.";
    domains: List = "[]", "Names that those servers answer; empty means all.";

    [dns]
    upstream: List = r#"["system"]"#, "Whom the gateway's resolver asks: addresses, best first, or system for those of /etc/resolv.conf.";
    zones: List = "[]", "Domains with servers of their own, such as \"corp.example=10.0.0.53\"; nobody else is ever asked for them.";
    inner: Text = r#""internal""#, "The domain in which DEVICE.USER has the device's inner addresses; empty turns it off.";

    [limits]
    devices_per_user: Number = "5", "0 means no limit.";
    rate: TextOrNumber = r#""0""#, "Bits a second each way for each device, such as \"50M\"; 0 means no limit.";
    handshakes_per_second: Number = "50", "New connections without a device certificate (enrolments) beyond this rate are told to wait, and so is a device that connects more than once a second; 0 means no limit.";
    speedtests: Number = "4", "Speed tests of clients against this gateway at once (culvert speedtest), one a device, 10 s each way at most; 0 means none.";

    [metrics]
    listen: Text = r#""127.0.0.1:9580""#, "Prometheus (/metrics) and health (/livez, /readyz), as address:port; empty is off.";
    devices: Switch = "false", "A series for each connected device, with its name as a label.";

    [log]
    format: Text = r#""auto""#, "text, json, or auto: text on a terminal, else json.";
    level: Text = r#""info""#, "error, warn, info, debug, trace, or per-module directives.";
    addresses: Text = r#""full""#, "What is logged of clients' addresses: full (fail2ban needs it), prefix (/24, IPv6 /48) or none.";
    file: Text = r#""""#, "Also log into this file; for machines without a journal.";

    [bans]
    failures: Number = "10", "So many failed logins at once from one address (IPv6: /64) without a session ban it; 0 bans nobody.";
    window: Text = r#""5m""#, "In so long as many failures are forgiven.";
    duration: Text = r#""10m""#, "Of a first ban; each one after it is twice as long, up to 24h.";
    exempt: List = "[]", "Addresses and networks that are never banned for failures.";

    [state]
    dir: Text = r#""/var/lib/culvert-server""#, "Keys, certificates and the registry. Back this up.";

    [registry]
    url: Text = r#""""#, "The database that several gateways share, such as postgres://culvert@db.example.org/culvert; no password in it. Empty: a file in state.dir, for one gateway.";
    password_file: Text = r#""""#, "The first line of this file is the database's password; empty: PGPASSFILE, or none.";
    cache_age: Text = r#""24h""#, "While the database does not answer, devices that this gateway knew so long ago at most may connect; 0: none.";

    [control]
    socket: Text = r#""/run/culvert-server/control.sock""#, "Where the running gateway answers its administrator.";

    [tunnel]
    device: Text = r#""culvert0""#, "The interface's name, at most 15 bytes.";
    shards: TextOrNumber = r#""auto""#, "Threads that carry packets, each with its own queue and socket; auto is one a core.";
    congestion: Text = r#""none""#, "Controller around the datagrams: none, cubic or bbr.";

    [auth]
    rechallenge: Text = r#""1h""#, "How often a live session proves its key again; 0 turns it off.";
    device_lifetime: Text = r#""90d""#, "How long a device's certificate is good; it renews by itself at two thirds of that.";
}
