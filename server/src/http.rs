//! `/metrics`, `/livez` and `/readyz` on a TCP port of their own (`metrics.listen`).
//!
//! Whoever scrapes is a stranger: few connections at once, small requests, a deadline for each, and
//! nothing is read but the request line. What is told comes from the gateway's loop, by the same requests
//! as an administrator's.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request as HttpRequest, Response as HttpResponse, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::control_socket::{Asked, Request, Response};

/// Scrapers at once; others wait in the kernel's queue.
const CONNECTIONS: usize = 16;
/// For the head of a request, and between two of them.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// For a whole connection: a scraper that keeps it open comes again.
const CONNECTION_WITHIN: Duration = Duration::from_secs(300);
/// For the gateway's loop.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// hyper's smallest buffer; a scraper's headers take a few hundred bytes.
const HEAD_BYTES: usize = 8 * 1024;

/// The port, not serving yet.
#[derive(Debug)]
pub struct Http {
    listener: TcpListener,
}

impl Http {
    /// Listens. Needs a tokio runtime.
    ///
    /// # Errors
    /// What the OS says.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await? })
    }

    /// Answers until dropped, with what `asked` says.
    pub async fn serve(self, asked: mpsc::Sender<Asked>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let asked = asked.clone();
                    tokio::spawn(async move {
                        let _place = place;
                        let _ = timeout(CONNECTION_WITHIN, converse(stream, asked)).await; // whoever is slow is cut off
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the metrics port");
                    sleep(Duration::from_millis(100)).await; // out of descriptors
                }
            }
        }
    }
}

async fn converse(stream: TcpStream, asked: mpsc::Sender<Asked>) -> hyper::Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_BYTES)
        .max_headers(32)
        .serve_connection(TokioIo::new(stream), service_fn(|request| answer(request, asked.clone())))
        .await
}

async fn answer(
    request: HttpRequest<Incoming>,
    asked: mpsc::Sender<Asked>,
) -> Result<HttpResponse<Full<Bytes>>, Infallible> {
    const TEXT: &str = "text/plain; charset=utf-8";
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = told(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n".into());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(refused);
    }
    Ok(match request.uri().path() {
        "/metrics" => match ask(&asked, Request::Scrape).await {
            Some(Response::Metrics { text }) => told(StatusCode::OK, "text/plain; version=0.0.4", text),
            _ => told(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the gateway does not answer\n".into()),
        },
        "/livez" => match ask(&asked, Request::Alive).await {
            Some(_) => told(StatusCode::OK, TEXT, "ok\n".into()),
            None => told(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the gateway does not answer\n".into()),
        },
        "/readyz" => {
            let failed = match ask(&asked, Request::Ready).await {
                Some(Response::Ready { failed }) => failed,
                _ => vec!["loop".into()],
            };
            let status = if failed.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let body = serde_json::json!({ "ready": failed.is_empty(), "failed": failed });
            told(status, "application/json", format!("{body}\n"))
        }
        _ => told(StatusCode::NOT_FOUND, TEXT, "/metrics, /livez or /readyz\n".into()),
    })
}

async fn ask(asked: &mpsc::Sender<Asked>, request: Request) -> Option<Response> {
    let answered = async {
        let (reply, answer) = oneshot::channel();
        asked.send((request, reply)).await.ok()?;
        answer.await.ok()
    };
    timeout(ANSWER_WITHIN, answered).await.ok().flatten()
}

fn told(status: StatusCode, kind: &'static str, body: String) -> HttpResponse<Full<Bytes>> {
    let mut response = HttpResponse::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
