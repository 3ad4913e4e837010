//! The database that gateways share: where it is, and how its password is found.

use std::path::PathBuf;
use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;
use url::Url;

/// A PostgreSQL database. Its URL holds no password, so it may be shown and logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    url: Url,
    /// Its first line is the password.
    pub password_file: Option<PathBuf>,
}

/// Why a text names no database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotADatabase {
    /// Another scheme, or no URL at all.
    #[error("not the URL of a PostgreSQL database, such as \"postgres://culvert@db.example.org/culvert\"")]
    Malformed,
    /// It would be seen by whoever sees the configuration.
    #[error(
        "a password has no place in the URL; put it into a file that only the gateway can read, and its name into registry.password_file"
    )]
    Password,
}

impl Database {
    /// Reads a URL, whose parameters are those of libpq
    /// (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS>).
    ///
    /// # Errors
    /// [`NotADatabase`].
    pub fn new(url: &str, password_file: Option<PathBuf>) -> Result<Self, NotADatabase> {
        let url = Url::parse(url).map_err(|_| NotADatabase::Malformed)?;
        if url.password().is_some() || url.query_pairs().any(|(name, _)| name == "password") {
            return Err(NotADatabase::Password);
        }
        if !["postgres", "postgresql"].contains(&url.scheme()) || PgConnectOptions::from_str(url.as_str()).is_err() {
            return Err(NotADatabase::Malformed);
        }
        Ok(Self { url, password_file })
    }

    /// For people and for the database's library.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// True when nothing is said about TLS and the database is on another machine: then its certificate is
    /// verified, for whoever answers in its place decides who may connect.
    pub fn wants_tls(&self) -> bool {
        const SAID: [&str; 2] = ["sslmode", "ssl-mode"];
        const SOCKET: [&str; 1] = ["host"];
        let has = |names: &[&str]| self.url.query_pairs().any(|(name, _)| names.contains(&name.as_ref()));
        let near = match self.url.host_str() {
            None | Some("") => {
                !has(&SOCKET) || self.url.query_pairs().any(|(name, at)| name == "host" && at.starts_with('/'))
            }
            Some(host) => {
                let plain = host.trim_start_matches('[').trim_end_matches(']');
                host.starts_with("%2F")
                    || host.starts_with("%2f")
                    || host == "localhost"
                    || plain.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
            }
        };
        !near && !has(&SAID)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_with_a_password_is_refused_without_being_repeated() {
        for url in ["postgres://c:hunter2@db/c", "postgres://c@db/c?password=hunter2"] {
            let error = Database::new(url, None).unwrap_err();
            assert_eq!(error, NotADatabase::Password);
            assert!(!error.to_string().contains("hunter2"));
        }
        for url in ["", "db.example.org", "mysql://db/c", "postgres://db/c?sslmode=never"] {
            assert_eq!(Database::new(url, None), Err(NotADatabase::Malformed), "{url}");
        }
    }

    #[test]
    fn a_database_elsewhere_has_to_show_a_certificate_unless_somebody_says_otherwise() {
        let wants = |url: &str| Database::new(url, None).unwrap().wants_tls();
        for far in ["postgres://c@db.example.org/c", "postgres://c@192.0.2.9/c", "postgresql:///c?host=db.example.org"]
        {
            assert!(wants(far), "{far}");
        }
        for near in [
            "postgres://c@localhost/c",
            "postgres://c@[::1]/c",
            "postgres://c@%2Frun%2Fpostgresql/c",
            "postgres:///c?host=/run/postgresql",
            "postgres://c@db.example.org/c?sslmode=disable",
        ] {
            assert!(!wants(near), "{near}");
        }
    }
}
