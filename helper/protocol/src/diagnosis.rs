//! What `culvert doctor` finds: fifteen checks in a fixed order, and one verdict.
//!
//! The first check that fails is the cause; those after it are listed all the same, and those that cannot be
//! made because of it say so. Nothing is asserted that was not measured: what is only likely is marked.

use serde::{Deserialize, Serialize};

use crate::problem::Code;
use crate::status::Timestamp;

/// A whole diagnosis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Diagnosis {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// When it began.
    #[serde(with = "time::serde::rfc3339")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Moment"))]
    pub at: Timestamp,
    /// How long it took.
    pub took_ms: u64,
    /// One plain sentence, and what to do.
    pub verdict: Finding,
    /// Every check, in order.
    pub checks: Vec<Check>,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Check {
    /// Which one.
    pub check: CheckId,
    /// What it found.
    #[serde(flatten)]
    pub finding: Finding,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// Good, doubtful, bad, or not looked at.
    pub outcome: Outcome,
    /// How sure that is.
    pub certainty: Certainty,
    /// One sentence for people.
    pub sentence: String,
    /// What to do about it; absent when nothing is to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The number in the catalogue of errors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it should be.
    Pass,
    /// It works, and something about it should be known.
    Warn,
    /// This is why it does not work.
    Fail,
    /// It could not be, or need not be, looked at; the sentence says why.
    NotChecked,
}

/// How sure a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Certainty {
    /// Exactly what the sentence says was seen.
    Measured,
    /// It is the most likely reason of what was seen.
    Inferred,
}

macro_rules! checks {
    ($( $name:ident, $word:literal, $title:literal; )*) => {
        /// The checks, in the order in which they are made: each stands on those before it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        pub enum CheckId {
            $( #[doc = $title] #[serde(rename = $word)] $name, )*
        }

        impl CheckId {
            /// Every check, in order.
            pub const ALL: &[Self] = &[ $( Self::$name, )* ];

            /// The stable word, as in JSON.
            pub const fn word(self) -> &'static str {
                match self { $( Self::$name => $word, )* }
            }

            /// Its name for people.
            pub const fn title(self) -> &'static str {
                match self { $( Self::$name => $title, )* }
            }
        }
    };
}

checks! {
    Helper, "helper", "Background helper";
    Enrolment, "enrolment", "Access to a gateway";
    Network, "network", "Network";
    Portal, "portal", "Sign-in page of the network";
    Clock, "clock", "Date and time";
    Name, "name", "Name of the gateway";
    Reach, "reach", "Gateway reachable over UDP";
    Identity, "identity", "Identity of the gateway";
    Admission, "admission", "Admission by the gateway";
    Routes, "routes", "Routes and addresses";
    Echo, "echo", "Echo through the tunnel";
    Mtu, "mtu", "Packet size";
    Dns, "dns", "Name servers inside";
    Internet, "internet", "Internet through the gateway";
    Leaks, "leaks", "Nothing beside the tunnel";
}

impl CheckId {
    /// Its number, from 1.
    pub fn number(self) -> usize {
        Self::ALL.iter().position(|check| *check == self).map_or(0, |place| place + 1)
    }
}

impl Finding {
    /// As it should be.
    pub fn pass(sentence: impl Into<String>) -> Self {
        Self::new(Outcome::Pass, sentence)
    }

    /// Works, but.
    pub fn warn(sentence: impl Into<String>) -> Self {
        Self::new(Outcome::Warn, sentence)
    }

    /// The reason, or one of them.
    pub fn fail(code: Code, sentence: impl Into<String>, action: impl Into<String>) -> Self {
        Self { code: Some(code), ..Self::new(Outcome::Fail, sentence) }.act(action)
    }

    /// Not looked at.
    pub fn not_checked(sentence: impl Into<String>) -> Self {
        Self::new(Outcome::NotChecked, sentence)
    }

    /// The same as something that is only likely.
    #[must_use]
    pub fn inferred(self) -> Self {
        Self { certainty: Certainty::Inferred, ..self }
    }

    /// The same with something to do.
    #[must_use]
    pub fn act(self, action: impl Into<String>) -> Self {
        Self { action: Some(action.into()), ..self }
    }

    fn new(outcome: Outcome, sentence: impl Into<String>) -> Self {
        Self { outcome, certainty: Certainty::Measured, sentence: sentence.into(), action: None, code: None }
    }
}

impl Diagnosis {
    /// Puts checks in their order, says of those that are missing that they were not made, and finds the verdict:
    /// the first failure, else the first doubt, else that all is well. `well` is the sentence for that.
    pub fn of(at: Timestamp, took_ms: u64, mut found: Vec<Check>, well: &str) -> Self {
        for &check in CheckId::ALL {
            if found.iter().all(|known| known.check != check) {
                found.push(Check { check, finding: Finding::not_checked("Not looked at") });
            }
        }
        found.sort_by_key(|check| check.check);
        let first = |outcome| found.iter().find(|check| check.finding.outcome == outcome);
        let verdict = first(Outcome::Fail)
            .or_else(|| first(Outcome::Warn))
            .map_or_else(|| Finding::pass(well), |check| check.finding.clone());
        Self { schema: crate::SCHEMA, at, took_ms, verdict, checks: found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::code;
    use serde_json::json;

    #[test]
    fn the_first_failure_is_the_verdict_and_every_check_is_listed_in_order() {
        let found = vec![
            Check { check: CheckId::Reach, finding: Finding::fail(code::NO_ANSWER, "No reply", "Try again") },
            Check { check: CheckId::Network, finding: Finding::fail(code::NO_NETWORK, "No network", "Plug it in") },
            Check { check: CheckId::Helper, finding: Finding::warn("Older") },
        ];
        let diagnosis = Diagnosis::of(Timestamp::UNIX_EPOCH, 1, found, "All is well");
        assert_eq!(diagnosis.verdict.code, Some(code::NO_NETWORK));
        let order: Vec<CheckId> = diagnosis.checks.iter().map(|check| check.check).collect();
        assert_eq!(order, CheckId::ALL);
        assert_eq!(diagnosis.checks[14].finding.outcome, Outcome::NotChecked);
        let doubt = Diagnosis::of(Timestamp::UNIX_EPOCH, 1, diagnosis.checks[..1].to_vec(), "All is well");
        assert_eq!(doubt.verdict.sentence, "Older");
        assert_eq!(Diagnosis::of(Timestamp::UNIX_EPOCH, 1, vec![], "All is well").verdict.sentence, "All is well");
    }

    #[test]
    fn a_check_is_one_flat_object_with_stable_words() {
        let check = Check {
            check: CheckId::Reach,
            finding: Finding::fail(code::NO_ANSWER, "No reply", "Try again").inferred(),
        };
        let shape = json!({"check": "reach", "outcome": "fail", "certainty": "inferred", "sentence": "No reply",
                           "action": "Try again", "code": "E104"});
        assert_eq!(serde_json::to_value(&check).unwrap(), shape);
        assert_eq!(serde_json::from_value::<Check>(shape).unwrap(), check);
        assert_eq!((CheckId::ALL.len(), CheckId::Helper.number(), CheckId::Leaks.number()), (15, 1, 15));
        for check in CheckId::ALL {
            assert_eq!(serde_json::to_value(check).unwrap(), json!(check.word()));
        }
    }
}
