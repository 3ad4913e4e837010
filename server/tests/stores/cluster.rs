//! A PostgreSQL server of one test's own, on a Unix socket in a temporary folder. Needs Debian's package `postgresql`
//! (scripts/setup --test).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use culvert_server::config::Database;

/// Runs until it is dropped, and ends with the thread that started it at the latest.
pub struct Cluster {
    folder: tempfile::TempDir,
    fsync: bool,
    server: Option<Child>,
}

impl Cluster {
    /// Makes and starts one. Its superuser `culvert` needs no password, and `guarded` has the password `secret`.
    pub fn start() -> Self {
        Self::made(false)
    }

    /// The same, and what it has committed is on the disk, as where it matters: for measurements.
    pub fn start_durable() -> Self {
        Self::made(true)
    }

    fn made(fsync: bool) -> Self {
        let folder = tempfile::Builder::new().prefix("culvert-pg-").tempdir_in("/tmp").unwrap();
        // PostgreSQL refuses to run as root.
        let owner = Command::new("chown").arg("postgres").arg(folder.path()).status().unwrap();
        assert!(owner.success() || !is_root(), "there is no user postgres; run scripts/setup --test");
        let mut this = Self { folder, fsync, server: None };
        let made = this
            .program("initdb")
            .args(["--username=culvert", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(this.data())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let guarded = "local all guarded scram-sha-256\nlocal all all trust\n";
        std::fs::write(this.data().join("pg_hba.conf"), guarded).unwrap();
        this.run();
        this.psql("postgres", "CREATE ROLE guarded LOGIN PASSWORD 'secret'");
        this
    }

    /// Starts the server, and waits until it answers.
    pub fn run(&mut self) {
        let mut server = self.program("postgres");
        server.arg("-D").arg(self.data()).arg("-k").arg(self.folder.path());
        server.args(["-c", "listen_addresses=", "-c", "max_connections=60", "-c"]);
        server.arg(if self.fsync { "fsync=on" } else { "fsync=off" });
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        self.server = Some(server.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.try_psql("postgres", "SELECT 1") {
            assert!(Instant::now() < deadline, "PostgreSQL did not start");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops the server as its administrator would in a hurry: connections are cut.
    pub fn stop(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        rustix::process::kill_process(rustix::process::Pid::from_child(&server), rustix::process::Signal::INT).unwrap();
        server.wait().unwrap();
    }

    /// Nothing of the server runs any more until `frozen` is false again: as when its machine is cut off.
    pub fn freeze(&self, frozen: bool) {
        let server = self.server.as_ref().expect("it runs").id();
        let children = std::fs::read_to_string(format!("/proc/{server}/task/{server}/children")).unwrap();
        let signal = if frozen { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT };
        let all = children.split_whitespace().map(|pid| pid.parse().unwrap()).chain([server as i32]);
        for pid in all {
            let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal); // it may have ended
        }
    }

    /// Makes an empty database.
    pub fn database(&self, name: &str) -> Database {
        self.psql("postgres", &format!("CREATE DATABASE {name}"));
        self.place("culvert", name, None)
    }

    /// A database as another user, with a file that holds the password.
    pub fn place(&self, user: &str, name: &str, password_file: Option<PathBuf>) -> Database {
        let socket = self.folder.path().to_str().unwrap().replace('/', "%2F");
        Database::new(&format!("postgres://{user}@{socket}/{name}"), password_file).unwrap()
    }

    /// Runs a statement.
    pub fn psql(&self, database: &str, statement: &str) {
        assert!(self.try_psql(database, statement), "{statement}");
    }

    /// True when the statement succeeds.
    pub fn try_psql(&self, database: &str, statement: &str) -> bool {
        let mut psql = self.program("psql");
        psql.arg("-h").arg(self.folder.path()).args(["-U", "culvert", "-qAt", "-c", statement, database]);
        psql.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn program(&self, name: &str) -> Command {
        let path = binaries().join(name);
        if !is_root() {
            return Command::new(path);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=INT", "--"]).arg(path);
        command.current_dir("/");
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Debian keeps a folder a version.
fn binaries() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is there; run scripts/setup --test");
    let mut found: Vec<PathBuf> = versions.map(|entry| entry.unwrap().path().join("bin")).collect();
    found.retain(|folder: &PathBuf| Path::new(folder).join("initdb").exists());
    found.sort();
    found.pop().expect("a server of PostgreSQL; run scripts/setup --test")
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
