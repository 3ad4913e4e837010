//! `culvert enrol` while it waits for an invitation. The other end of the socket is this test, which
//! greets as a helper does.
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic as its body does")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use culvert_protocol::{Answer, Ask, Event, FrameReader, Request, VERSION, decode, encode};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

#[test]
fn ctrl_c_ends_it_while_it_waits_for_an_invitation() {
    let mut bench = Bench::new();
    let mut caller = bench.greet();
    assert_eq!(caller.read(&mut [0]).unwrap(), 0, "it keeps no connection while it reads");
    kill_process(Pid::from_child(&bench.culvert), Signal::INT).unwrap();
    let asked = Instant::now();
    let status = loop {
        if let Some(status) = bench.culvert.try_wait().unwrap() {
            break status;
        }
        assert!(asked.elapsed() < Duration::from_secs(5), "it does not hear Ctrl-C");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.code(), Some(130));
}

#[test]
fn an_invitation_that_took_long_to_type_goes_through_a_fresh_connection() {
    let mut bench = Bench::new();
    let mut first = bench.greet();
    assert_eq!(first.read(&mut [0]).unwrap(), 0);
    let mut stdin = bench.culvert.stdin.take().unwrap();
    stdin.write_all(b" an invitation\n").unwrap();
    drop(stdin);
    let mut second = bench.greet();
    let asked = hear(&mut second);
    assert!(matches!(asked.request, Request::Enrol { invitation, .. } if invitation == "an invitation"));
}

struct Bench {
    listener: UnixListener,
    culvert: Child,
    _dir: TempDir,
}

impl Bench {
    /// Starts `culvert enrol -` with a stdin that says nothing yet.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("helper.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
        command.env("CULVERT_SOCKET", &socket).args(["enrol", "-"]);
        let culvert = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        Self { listener, culvert, _dir: dir }
    }

    /// Takes the next connection, up to the end of its greeting.
    fn greet(&self) -> UnixStream {
        let (mut stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let Ask { id, request } = hear(&mut stream);
        assert!(matches!(request, Request::Hello { .. }), "{request:?}");
        let event = Event::Hello { version: VERSION, helper: "test".into() };
        stream.write_all(&encode(&Answer { id: Some(id), event }).unwrap()).unwrap();
        stream
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.culvert.kill();
        let _ = self.culvert.wait();
    }
}

fn hear(stream: &mut UnixStream) -> Ask {
    let mut reader = FrameReader::default();
    loop {
        if let Some(frame) = reader.next_frame().unwrap() {
            return decode(&frame).unwrap();
        }
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "it hung up");
        reader.push(&bytes[..count]);
    }
}
