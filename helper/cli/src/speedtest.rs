//! `speedtest`: how fast the tunnel is, between this machine and its own gateway; nobody else takes part.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use culvert_protocol::{Client, Problem, Request, Status, code};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::failure::Failure;
use crate::json::{Numbered, Speed};
use crate::{ask_status, dial, output};

/// `culvert_tunnel::control::SPEED_PORT`; this program does not link the tunnel.
const PORT: u16 = 9581;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// What the gateway may take beyond the test's own time.
const SLACK: Duration = Duration::from_secs(6);
/// How often the round trip is looked at during a test.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const CHUNK_BYTES: usize = 64 * 1024;

#[derive(Args, Debug)]
pub(crate) struct Speedtest {
    /// How long each way is tested.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=10))]
    seconds: u64,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn speedtest(socket: &Path, Speedtest { seconds, json }: Speedtest) -> Result<ExitCode, Failure> {
    let mut client = dial(socket).await?;
    let status = ask_status(&mut client, Request::Status).await?;
    let gateway = status.gateway.as_ref().filter(|_| status.state.is_connected());
    let Some((name, inner)) = gateway.and_then(|gateway| Some((gateway.name.clone(), gateway.inner?))) else {
        let problem = Problem::new(code::NOT_CONNECTED);
        return Err(problem.into());
    };
    let address = SocketAddr::new(inner, PORT);
    let rtt_ms = rtt(&status);
    let mut loaded_rtt_ms = rtt_ms;
    let down = beside(&mut client, &mut loaded_rtt_ms, down(address, seconds)).await?;
    let up = beside(&mut client, &mut loaded_rtt_ms, up(address, seconds)).await?;
    let speed =
        Speed { gateway: name, down_bits_per_second: down, up_bits_per_second: up, rtt_ms, loaded_rtt_ms, seconds };
    if json {
        output::json(&Numbered::new(speed))?;
    } else {
        output::text(&text(&speed))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn rtt(status: &Status) -> f64 {
    status.path.map_or(0.0, |path| path.rtt_ms)
}

/// Runs a test and watches what it does to the round trip.
async fn beside(
    client: &mut Client,
    longest_ms: &mut f64,
    test: impl Future<Output = io::Result<f64>>,
) -> Result<f64, Failure> {
    let mut test = std::pin::pin!(test);
    loop {
        tokio::select! {
            rate = &mut test => return rate.map_err(|error| refused(&error).into()),
            () = sleep(LOOK_EVERY) => {
                *longest_ms = longest_ms.max(rtt(&ask_status(client, Request::Status).await?));
            }
        }
    }
}

fn refused(error: &io::Error) -> Problem {
    let sentence = match error.kind() {
        io::ErrorKind::ConnectionRefused => "The gateway serves no speed tests".to_owned(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "The gateway broke the speed test off; it may serve others just now".to_owned()
        }
        io::ErrorKind::TimedOut => "The gateway did not finish the speed test in time".to_owned(),
        _ => format!("The speed test failed: {error}"),
    };
    Problem::new(code::SPEEDTEST).because(sentence)
}

async fn open(address: SocketAddr, way: &str, seconds: u64) -> io::Result<TcpStream> {
    let mut stream = timeout(CONNECT_WITHIN, TcpStream::connect(address)).await??;
    stream.write_all(format!("culvert-speed 1 {way} {seconds}\n").as_bytes()).await?;
    Ok(stream)
}

/// Bits a second that arrive here, from the first byte on.
async fn down(address: SocketAddr, seconds: u64) -> io::Result<f64> {
    let mut stream = open(address, "down", seconds).await?;
    let transfer = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        let first = stream.read(&mut chunk).await?;
        let (began, mut count) = (Instant::now(), 0_u64);
        if first == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        loop {
            match stream.read(&mut chunk).await? {
                0 => return Ok(rate(count, began.elapsed())),
                bytes => count += bytes as u64,
            }
        }
    };
    timeout(Duration::from_secs(seconds) + SLACK, transfer).await?
}

/// Bits a second that arrive at the gateway, as it counts them: what is still in buffers here does not count.
async fn up(address: SocketAddr, seconds: u64) -> io::Result<f64> {
    let mut stream = open(address, "up", seconds).await?;
    let transfer = async {
        let (chunk, began) = (vec![0; CHUNK_BYTES], Instant::now());
        while began.elapsed() < Duration::from_secs(seconds) {
            stream.write_all(&chunk).await?;
        }
        stream.shutdown().await?;
        let mut said = String::new();
        (&mut stream).take(64).read_to_string(&mut said).await?;
        let count = said.trim_end().parse().map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        Ok(rate(count, began.elapsed()))
    };
    timeout(Duration::from_secs(seconds) + SLACK, transfer).await?
}

fn rate(bytes: u64, time: Duration) -> f64 {
    8.0 * bytes as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE)
}

fn text(speed: &Speed) -> String {
    format!(
        "Down:  {}\nUp:    {}\nRTT:   {:.0} ms, {:.0} ms while loaded\nMeasured for {} s each way between this machine and {}.",
        bits(speed.down_bits_per_second),
        bits(speed.up_bits_per_second),
        speed.rtt_ms,
        speed.loaded_rtt_ms,
        speed.seconds,
        speed.gateway,
    )
}

/// Decimal units with two or three significant figures.
fn bits(rate: f64) -> String {
    const UNITS: [&str; 4] = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"];
    let (mut value, mut unit) = (rate, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if value >= 9.95 { format!("{value:.0} {}", UNITS[unit]) } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_rounded_for_people() {
        assert_eq!(bits(0.0), "0.0 bit/s");
        assert_eq!(bits(412_000_000.0), "412 Mbit/s");
        assert_eq!(bits(999_999.0), "1.0 Mbit/s");
        assert_eq!(bits(2.54e9), "2.5 Gbit/s");
        assert_eq!(rate(1_000_000, Duration::from_secs(2)), 4e6);
    }
}
