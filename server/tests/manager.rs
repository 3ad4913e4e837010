//! What the service manager is told by a real gateway (sd_notify(3)), also while one of its threads hangs.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]
#![allow(unsafe_code, reason = "ptrace(2) stops one thread of another process")]

mod namespace;

use std::fs::{DirEntry, File};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use namespace::in_a_namespace;

#[test]
fn the_manager_is_told_of_the_start_a_reload_and_the_end() {
    in_a_namespace("the_manager_is_told_of_the_start_a_reload_and_the_end", || {
        let mut gateway = Gateway::start();
        assert_eq!(gateway.told(), "READY=1");
        assert_eq!(gateway.told(), "WATCHDOG=1");
        assert_eq!(gateway.told(), "STATUS=serving 127.0.0.1:4433, 0 sessions");
        gateway.signal("-HUP");
        let reloading = gateway.next_but_watchdog();
        let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&reloading);
        assert!(time.parse::<u64>().is_ok(), "{time}");
        assert_eq!(gateway.next_but_watchdog(), "READY=1");
        gateway.signal("-TERM");
        assert_eq!(gateway.next_but_watchdog(), "STOPPING=1\nSTATUS=stopping");
        assert!(gateway.child.wait().unwrap().success());
    });
}

#[test]
fn a_packet_thread_that_hangs_ends_the_watchdogs_messages_until_it_goes_on() {
    in_a_namespace("a_packet_thread_that_hangs_ends_the_watchdogs_messages_until_it_goes_on", || {
        let gateway = Gateway::start();
        assert_eq!(gateway.told(), "READY=1");
        let thread = gateway.thread("shard-1");
        ptrace(libc::PTRACE_SEIZE, thread);
        ptrace(libc::PTRACE_INTERRUPT, thread);
        // SAFETY: no status is asked for.
        assert_eq!(unsafe { libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL) }, thread, "it stands still");
        gateway.missed("shard-1"); // the look that it may have answered just before is over
        gateway.forget();
        gateway.missed("shard-1");
        assert_eq!(gateway.forget(), b"", "nothing was told from one look to the next");
        ptrace(libc::PTRACE_DETACH, thread);
        assert_eq!(gateway.told(), "WATCHDOG=1");
    });
}

/// A gateway in a folder of its own; it looks after itself every 200 ms.
struct Gateway {
    folder: tempfile::TempDir,
    manager: UnixDatagram,
    child: Child,
}

impl Gateway {
    fn start() -> Self {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let manager = UnixDatagram::bind(path("notify")).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let command = |arguments: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-server"));
            command
                .args([PathBuf::from("--config"), path("gw.toml"), "--state-dir".into(), path("state")])
                .args([PathBuf::from("--socket"), path("sock")])
                .args(arguments)
                .env("CULVERT_SERVER_LISTEN__ADDRESS", "127.0.0.1:4433")
                .env("CULVERT_SERVER_TUNNEL__SHARDS", "2")
                .env("CULVERT_SERVER_LOG__FORMAT", "text");
            command
        };
        assert!(command(&["init", "--endpoint", "127.0.0.1"]).output().unwrap().status.success());
        let child = command(&["run"])
            .env("NOTIFY_SOCKET", path("notify"))
            .env("WATCHDOG_USEC", "600000")
            .stderr(File::create(path("log")).unwrap())
            .spawn()
            .unwrap();
        Self { folder, manager, child }
    }

    /// The next message to the manager.
    fn told(&self) -> String {
        let mut words = [0; 512];
        let count = self.manager.recv(&mut words).expect("the manager is told");
        String::from_utf8_lossy(&words[..count]).trim().to_owned()
    }

    fn next_but_watchdog(&self) -> String {
        std::iter::repeat_with(|| self.told()).find(|words| words != "WATCHDOG=1").unwrap()
    }

    /// What is there already, without waiting.
    fn forget(&self) -> Vec<u8> {
        self.manager.set_nonblocking(true).unwrap();
        let mut words = [0; 512];
        let mut all = Vec::new();
        while let Ok(count) = self.manager.recv(&mut words) {
            all.extend_from_slice(&words[..count]);
        }
        self.manager.set_nonblocking(false).unwrap();
        all
    }

    /// Waits until a look that begins or ends from now on has missed `part`.
    fn missed(&self, part: &str) {
        let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap();
        let before = log().len();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !log()[before..].contains(&format!("event=watchdog part={part}")) {
            assert!(Instant::now() < deadline, "{}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// A thread gives itself its name, which may be after the gateway said that it is ready.
    fn thread(&self, name: &str) -> libc::pid_t {
        let is_called = |thread: &DirEntry| {
            std::fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
            if let Some(thread) = threads.map(Result::unwrap).find(is_called) {
                return thread.file_name().to_str().unwrap().parse().unwrap();
            }
            assert!(Instant::now() < deadline, "no thread is called {name}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

fn ptrace(request: libc::c_uint, thread: libc::pid_t) {
    // SAFETY: these requests take neither an address nor data.
    let done = unsafe { libc::ptrace(request, thread, 0, 0) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}
