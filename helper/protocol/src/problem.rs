//! The catalogue of errors: for each E-code a word, a title, a cause and what to do.
//!
//! One table, so that helper, CLI, app and documentation say the same. A cause may be replaced by
//! a more exact one ([`Problem::because`]); the code never changes its meaning. Not here: which
//! close code or OS error leads to which E-code (those are with their owners).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// A user-visible error number, written `E104`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(pub u16);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "E{:03}", self.0)
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let digits = text.strip_prefix('E').ok_or_else(|| D::Error::custom("an error code begins with E"))?;
        digits.parse().map(Self).map_err(D::Error::custom)
    }
}

/// What happened, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Problem {
    /// The number to quote to support.
    pub code: Code,
    /// A stable word for scripts; one code may have several (`invite_used`, `invite_expired`).
    pub word: String,
    /// One sentence: why.
    pub cause: String,
    /// One sentence: what to do. May be empty.
    pub hint: String,
}

impl Problem {
    /// The problem in the catalogue's own words.
    pub fn new(code: Code) -> Self {
        let entry = Entry::of(code);
        Self { code, word: entry.word.into(), cause: for_device(entry.cause), hint: for_device(entry.hint) }
    }

    /// The same problem with a more exact cause (a whole sentence).
    #[must_use]
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.cause = cause.into();
        self
    }

    /// The same problem with another hint (a whole sentence).
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The same problem with a more exact word.
    #[must_use]
    pub fn word(mut self, word: &str) -> Self {
        self.word = word.into();
        self
    }

    /// The short title.
    pub fn title(&self) -> String {
        for_device(Entry::of(self.code).title)
    }
}

impl fmt::Display for Problem {
    /// `cause. hint: what to do. [E104]`, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.", self.cause.trim_end_matches('.'))?;
        if !self.hint.is_empty() {
            write!(f, " hint: {}.", self.hint.trim_end_matches('.'))?;
        }
        write!(f, " [{}]", self.code)
    }
}

impl std::error::Error for Problem {}

/// One line of the catalogue. `{device}` stands for "this Mac" or "this computer".
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The number.
    pub code: Code,
    /// The stable word.
    pub word: &'static str,
    /// A few words for a title.
    pub title: &'static str,
    /// One sentence: why.
    pub cause: &'static str,
    /// One sentence: what to do.
    pub hint: &'static str,
}

impl Entry {
    /// The catalogue's entry; that of [`code::INTERNAL`] for a number from a newer version.
    pub fn of(code: Code) -> &'static Self {
        let known = CATALOGUE.iter().find(|entry| entry.code == code);
        known.unwrap_or(&CATALOGUE[0])
    }
}

/// "this Mac" where that is true; a sentence begins with a capital.
fn for_device(text: &str) -> String {
    let device = if cfg!(target_os = "macos") { "this Mac" } else { "this computer" };
    if let Some(rest) = text.strip_prefix("{device}") {
        return format!("T{}{}", &device[1..], rest.replace("{device}", device));
    }
    text.replace("{device}", device)
}

macro_rules! catalogue {
    ($( $name:ident = $number:literal, $word:literal, $title:literal, $cause:literal, $hint:literal; )*) => {
        /// The numbers by name.
        pub mod code {
            use super::Code;
            $( #[doc = $title] pub const $name: Code = Code($number); )*
        }

        /// Every error a user can meet, in the order of the numbers within each family.
        pub const CATALOGUE: &[Entry] = &[ $( Entry {
            code: Code($number), word: $word, title: $title, cause: $cause, hint: $hint,
        }, )* ];
    };
}

catalogue! {
    INTERNAL = 0, "internal", "Something went wrong inside Culvert",
        "The helper failed in a way that it does not understand", "Look at its log, and report this";
    GOODBYE = 100, "goodbye", "The gateway ended the session",
        "The gateway ended the session without calling it an error", "Connect again when you need it";
    NO_NETWORK = 101, "no_network", "No network",
        "{device} is not connected to a network", "The VPN connects by itself when it is";
    PORTAL = 102, "portal", "This network needs a sign-in",
        "This network lets nothing through before a sign-in", "Open its sign-in page (culvert portal); the VPN connects afterwards";
    NAME = 103, "name", "The gateway's name was not found",
        "The gateway's name has no address on this network", "Try another network, or ask your administrator";
    NO_ANSWER = 104, "no_answer", "The gateway does not answer",
        "The gateway does not answer", "It may be down, or this network blocks UDP; the helper keeps trying until you disconnect";
    UDP_BLOCKED = 105, "udp_blocked", "This network blocks UDP",
        "Other addresses answer, UDP does not", "Try another network";
    WRONG_SERVER = 201, "wrong_server", "This is not your gateway",
        "The server could not prove that it is the gateway you enrolled with; nothing was sent",
        "Report this to your administrator";
    SERVER_EXPIRED = 202, "server_expired", "The gateway's certificate expired",
        "The gateway's certificate expired", "Check this machine's date; if it is right, only the administrator can renew it";
    CLOCK = 203, "clock", "Check the date and time",
        "The clock of {device} is wrong, so certificates cannot be checked", "Set the date and time";
    REVOKED = 301, "revoked", "Access was removed",
        "The administrator removed {device}", "Ask for a new invitation";
    EXPIRED = 302, "expired", "Access expired",
        "The certificate of {device} expired", "Ask for a new invitation";
    UNKNOWN = 303, "unknown_device", "The gateway does not know this device",
        "The gateway does not know {device}; it may have been reinstalled", "Ask for a new invitation";
    LIMIT = 304, "limit", "Too many devices",
        "The gateway allows no more devices for this user", "Have one removed, or ask for more";
    FULL = 305, "full", "The gateway is full",
        "The gateway cannot take another session now", "Try later";
    WAIT = 306, "wait", "Too many attempts",
        "The gateway wants a pause after too many attempts", "It is tried again by itself";
    VERSION = 307, "version", "An update is needed",
        "The gateway and {device} speak no common version of the protocol", "Update Culvert";
    HELPER = 401, "helper", "The background helper is not running",
        "The background helper does not answer", "Start it: sudo culvert-helper run, or your service manager";
    HELPER_VERSION = 402, "helper_version", "The helper has another version",
        "The background helper speaks another version of the protocol", "Restart the helper, or install both from one package";
    CONFLICT = 403, "conflict", "Another VPN holds the routes",
        "Another program holds the routes or the interface that this VPN needs", "Disconnect it and try again";
    OVERLAP = 404, "overlap", "Address clash",
        "A network of {device} and a network behind the gateway use the same addresses",
        "Choose which of them wins (culvert settings set overlap gateway, or local), use another local network, or ask the administrator";
    FILTER = 405, "filter", "Something on this machine blocks the VPN",
        "A local network filter refused the helper's packets", "Allow culvert-helper in it and try again";
    NO_TUN = 406, "no_tun", "The tunnel device is missing",
        "/dev/net/tun is missing, so no tunnel interface can be made",
        "Load the kernel module (modprobe tun); in a container pass --device /dev/net/tun";
    CAPABILITY = 407, "capability", "The helper lacks a privilege",
        "The helper may not change the network: it lacks CAP_NET_ADMIN",
        "Run it as root, or grant the capability; in a container pass --cap-add NET_ADMIN";
    SYSTEM = 408, "system", "A change to the system failed",
        "The operating system refused a change", "Everything was put back; look at the helper's log";
    FORBIDDEN = 409, "forbidden", "Not allowed",
        "Your user may not control the VPN", "Ask the administrator to add you to the group culvert, or your uid to the helper (culvert-helper run --allow-uid)";
    NOT_ENROLLED = 410, "not_enrolled", "Not set up",
        "{device} has no access yet", "Enrol with an invitation: culvert enrol";
    NO_PROFILE = 411, "no_profile", "No such profile",
        "There is no profile of that name", "Leave the name out to use the default profile";
    BAD_REQUEST = 412, "bad_request", "The helper does not know this request",
        "The helper does not understand the request", "Install helper and client from one package";
    BUSY = 413, "busy", "The helper is busy",
        "The helper serves as many callers as it can", "Close other clients and try again";
    DISK = 414, "disk", "The helper cannot save its files",
        "The state directory cannot be written", "Free some space or mend the directory's permissions; nothing was lost";
    KILL_SWITCH = 415, "kill_switch", "The kill switch cannot be changed",
        "The rules that hold traffic back cannot be changed", "Look at the helper's log; the rules are as they were";
    LOCKDOWN = 416, "lockdown", "Lockdown is on",
        "Lockdown is on, so nothing leaves {device} without the VPN",
        "Connect, or lift it until then: culvert disconnect --unblock";
    SETTINGS = 417, "settings", "The settings cannot be used",
        "The file with the settings is damaged, so the defaults are in force",
        "Choose again (culvert settings set); the damaged file is kept beside the new one";
    PROFILE_IN_USE = 418, "profile_in_use", "This profile is in use",
        "The profile is in use", "Disconnect first: culvert disconnect";
    PROFILE_NAME = 419, "profile_name", "This name cannot be used",
        "The name cannot be used for a profile", "Use 1 to 64 letters, digits and hyphens, and no name that is taken";
    NO_PORTAL = 420, "no_portal", "No sign-in page",
        "This network shows no sign-in page", "See culvert status, or find out more: culvert doctor";
    NOT_CONNECTED = 421, "not_connected", "Not connected",
        "{device} is not connected", "Connect first: culvert connect";
    SPEEDTEST = 422, "speedtest", "The speed test failed",
        "The speed test failed", "Try again in a moment; the administrator can allow more (limits.speedtests)";
    LOCKED = 423, "locked", "The identity is locked",
        "The identity of this profile opens only with a key from its user's keychain",
        "Connect as that user, with the keychain unlocked: culvert connect";
    MANAGED = 424, "managed", "Your administrator decides this",
        "The administrator of {device} has decided this setting", "Ask the administrator";
    UNDECIDED = 425, "undecided", "A decision of your administrator cannot be used",
        "What the administrator of {device} has decided cannot be used in every part", "Show this to the administrator";
    GATEWAY_INTERNET = 501, "gateway_internet", "Connected, but the gateway has no internet",
        "Internal addresses work, the gateway itself has no internet", "The administrator must look";
    LOSSY = 502, "lossy", "Connected, weak network",
        "Many packets are lost between {device} and the gateway", "Move closer to the access point or use another network";
    GATEWAY_NAMES = 503, "gateway_names", "Connected, but the gateway's name server does not answer",
        "The gateway answers, its name server does not", "The administrator must look";
    INVITATION = 601, "invite_damaged", "The invitation cannot be used",
        "The invitation is damaged or incomplete", "Copy the whole text again, or ask for a new one";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_entry_is_unique_and_says_both_why_and_what_to_do() {
        let (mut codes, mut words) = (HashSet::new(), HashSet::new());
        for entry in CATALOGUE {
            assert!(codes.insert(entry.code), "{} twice", entry.code);
            assert!(words.insert(entry.word), "{} twice", entry.word);
            for text in [entry.title, entry.cause, entry.hint] {
                assert!(!text.is_empty() && !text.ends_with('.'), "{}: {text:?}", entry.code);
            }
            let problem = Problem::new(entry.code);
            assert!(!problem.to_string().contains('{'), "{problem}");
        }
    }

    #[test]
    fn an_error_is_one_line_with_cause_hint_and_code() {
        let problem = Problem::new(code::NO_ANSWER).because("No reply from 203.0.113.7:443 for 5 s.").hint("Wait");
        assert_eq!(problem.to_string(), "No reply from 203.0.113.7:443 for 5 s. hint: Wait. [E104]");
        assert_eq!(problem.title(), "The gateway does not answer");
        assert_eq!(Problem::new(code::GOODBYE).hint("").to_string().matches("hint").count(), 0);
    }

    #[test]
    fn a_code_of_a_newer_version_keeps_its_number() {
        let problem: Problem = serde_json::from_str(r#"{"code":"E999","word":"new","cause":"c","hint":"h"}"#).unwrap();
        assert_eq!(problem.code, Code(999));
        assert!(serde_json::from_str::<Code>("\"104\"").is_err());
    }
}
