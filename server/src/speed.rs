//! Speed tests between a client and this gateway: `culvert speedtest` asks for bytes, or sends some, over TCP inside
//! the tunnel. Nobody else takes part, and nothing but zeros crosses.
//!
//! One line opens a test: `culvert-speed 1 down SECONDS` or `culvert-speed 1 up SECONDS`. Down: zeros until the time
//! is over. Up: whatever comes, until the client has closed its half; then one line, how many bytes came. Only inner
//! addresses are served, one test each, [`SECONDS`] at most.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::addresses::Pool;

pub use culvert_tunnel::control::SPEED_PORT as PORT;

/// The longest test.
pub const SECONDS: u64 = 10;
/// The opening line, and the last bytes of a client that has stopped in the middle.
const PATIENCE: Duration = Duration::from_secs(5);
const LINE_BYTES: u64 = 64;
const CHUNK_BYTES: usize = 64 * 1024;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Down(Duration),
    Up(Duration),
}

/// Serves tests.
#[derive(Debug)]
pub struct Speed {
    listener: TcpListener,
    pool: watch::Receiver<Pool>,
    running: Arc<Mutex<HashSet<IpAddr>>>,
    at_once: usize,
}

impl Speed {
    /// Listens at the gateway's inner address, for clients of the inner IPv4 network, `at_once` tests together.
    ///
    /// # Errors
    /// What the OS says.
    pub async fn bind(pool: watch::Receiver<Pool>, at_once: usize) -> io::Result<Self> {
        let gateway = pool.borrow().gateway().ipv4;
        let listener = TcpListener::bind((gateway, PORT)).await?;
        Ok(Self { listener, pool, running: Arc::default(), at_once })
    }

    /// Serves until the future is dropped.
    pub async fn serve(self) {
        loop {
            let Ok((stream, peer)) = self.listener.accept().await else {
                // Out of descriptors, mostly; without the pause this would spin.
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            };
            if let Some(place) = self.place(peer) {
                tokio::spawn(async move {
                    // What a client breaks off is its own affair.
                    let _ = serve(stream).await;
                    drop(place);
                });
            }
        }
    }

    /// One test for each inner address, and not more than the operator wants.
    fn place(&self, peer: SocketAddr) -> Option<Place> {
        let address = peer.ip();
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let may = IpNet::V4(self.pool.borrow().ipv4()).contains(&address) && running.len() < self.at_once;
        (may && running.insert(address)).then(|| Place { running: Arc::clone(&self.running), address })
    }
}

/// Gives the place back when it is dropped.
struct Place {
    running: Arc<Mutex<HashSet<IpAddr>>>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.address);
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    let mut line = String::new();
    timeout(PATIENCE, (&mut read).take(LINE_BYTES).read_line(&mut line)).await??;
    let Some(test) = parse(&line) else {
        return write.write_all(b"error: this gateway knows culvert-speed 1 down|up SECONDS\n").await;
    };
    match test {
        Test::Down(time) => {
            let (zeros, end) = (vec![0; CHUNK_BYTES], Instant::now() + time);
            while Instant::now() < end {
                // A client that does not read holds its place no longer than this.
                timeout_at(end + PATIENCE, write.write_all(&zeros)).await??;
            }
            write.shutdown().await
        }
        Test::Up(time) => {
            let (mut chunk, end) = (vec![0; CHUNK_BYTES], Instant::now() + time + PATIENCE);
            let mut count: u64 = read.buffer().len() as u64;
            read.consume(read.buffer().len());
            loop {
                match timeout_at(end, read.read(&mut chunk)).await?? {
                    0 => break,
                    bytes => count += bytes as u64,
                }
            }
            timeout(PATIENCE, write.write_all(format!("{count}\n").as_bytes())).await?
        }
    }
}

fn parse(line: &str) -> Option<Test> {
    let mut words = line.trim_end().split(' ');
    let (Some("culvert-speed"), Some("1"), Some(way), Some(seconds), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return None;
    };
    let time = seconds.parse().ok().filter(|seconds| (1..=SECONDS).contains(seconds)).map(Duration::from_secs)?;
    match way {
        "down" => Some(Test::Down(time)),
        "up" => Some(Test::Up(time)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_of_this_version_open_a_test() {
        assert_eq!(parse("culvert-speed 1 down 5\n"), Some(Test::Down(Duration::from_secs(5))));
        assert_eq!(parse("culvert-speed 1 up 10\n"), Some(Test::Up(Duration::from_secs(10))));
        for line in [
            "",
            "GET / HTTP/1.1",
            "culvert-speed 2 down 5",
            "culvert-speed 1 down 11",
            "culvert-speed 1 down 0",
            "culvert-speed 1 sideways 5",
            "culvert-speed 1 down 5 6",
            "culvert-speed 1 down -5",
        ] {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }

    #[tokio::test]
    async fn bytes_come_and_go_and_are_counted() {
        let speed = speed(1).await;
        let address = speed.listener.local_addr().unwrap();
        let serving = tokio::spawn(speed.serve());
        let mut down = TcpStream::connect(address).await.unwrap();
        down.write_all(b"culvert-speed 1 down 1\n").await.unwrap();
        let mut count = 0;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match down.read(&mut chunk).await.unwrap() {
                0 => break,
                bytes => count += bytes,
            }
        }
        assert!(count > CHUNK_BYTES, "{count}");
        drop(down);
        let up = async {
            loop {
                // Its place may be given back a moment later than its end is seen here.
                let mut up = TcpStream::connect(address).await.unwrap();
                up.write_all(b"culvert-speed 1 up 1\n").await.unwrap();
                let _ = up.write_all(&[0; 100_000]).await;
                let _ = up.shutdown().await;
                let mut said = String::new();
                if up.read_to_string(&mut said).await.is_ok() && !said.is_empty() {
                    return said;
                }
            }
        };
        assert_eq!(timeout(Duration::from_secs(5), up).await.unwrap(), "100000\n");
        serving.abort();
    }

    #[tokio::test]
    async fn strangers_and_second_tests_get_nothing() {
        let speed = speed(2).await;
        let inner = |port| SocketAddr::from(([127, 0, 0, 2], port));
        let first = speed.place(inner(1)).unwrap();
        assert!(speed.place(inner(2)).is_none(), "one test for each address");
        let other = speed.place(SocketAddr::from(([127, 0, 0, 3], 1))).unwrap();
        assert!(speed.place(SocketAddr::from(([127, 0, 0, 4], 1))).is_none(), "two at once");
        drop((first, other));
        assert!(speed.place(SocketAddr::from(([192, 0, 2, 1], 1))).is_none(), "not an inner address");
        assert!(speed.place(inner(3)).is_some());
    }

    async fn speed(at_once: usize) -> Speed {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pool = watch::Sender::new(Pool::new("127.0.0.0/8".parse().unwrap(), None)).subscribe();
        Speed { listener, pool, running: Arc::default(), at_once }
    }
}
