//! A secret in a message: it can be sent, and not printed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A key from a user's keychain, 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes what is secret from here on.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for whoever needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}
