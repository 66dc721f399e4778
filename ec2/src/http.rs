//! The HTTP server: it takes requests whole, within bounds of size and time, and gives each to a thread that
//! may wait.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::api::{Api, Call, Reply};
use crate::error::Error;

/// Bytes at most of a body: 16 KiB of user data, encoded twice, and a thousand instances named.
pub const MAX_BODY: usize = 256 << 10;
/// Bytes at most of a head.
const MAX_HEAD: usize = 32 << 10;
/// Connections at most at once; others wait to be accepted.
const MAX_CONNECTIONS: usize = 512;
/// A client that takes longer for its head, or says nothing on an open connection, is hung up on.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that takes longer for its body is hung up on.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// After a connection could not be accepted: descriptors are short.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves `api` on `listener` for as long as the process lives.
///
/// # Errors
/// When it cannot begin.
pub fn serve(listener: std::net::TcpListener, api: Arc<Api>) -> io::Result<Infallible> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                continue;
            };
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            };
            let api = Arc::clone(&api);
            tokio::spawn(async move {
                converse(stream, api).await;
                drop(place);
            });
        }
    })
}

async fn converse(stream: TcpStream, api: Arc<Api>) {
    let service = service_fn(move |request| {
        let api = Arc::clone(&api);
        async move { Ok::<_, Infallible>(answer(request, api).await) }
    });
    let _ = stream.set_nodelay(true);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection ended");
    }
}

async fn answer(request: Request<Incoming>, api: Arc<Api>) -> Response<Full<Bytes>> {
    let reply = match take(request).await {
        Ok(call) => {
            // Actions read files and wait for guests.
            let done = tokio::task::spawn_blocking(move || api.answer(&call)).await;
            done.unwrap_or_else(|_| Reply::internal())
        }
        Err(error) => Reply::refused(&error),
    };
    let mut response = Response::new(Full::from(reply.body));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in [
        ("content-type", "text/xml;charset=UTF-8"),
        ("x-amzn-requestid", &reply.request_id),
    ] {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// The whole request.
async fn take(request: Request<Incoming>) -> Result<Call, Error> {
    let (head, body) = request.into_parts();
    let headers = head.headers.iter().map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (name.as_str().to_owned(), value)
    });
    let headers = headers.collect();
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
    let body = match collected {
        Ok(Ok(body)) => body.to_bytes().to_vec(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Error::TooLarge(MAX_BODY)),
        Ok(Err(_)) => return Err(Error::Malformed("the body ended early")),
        Err(_) => return Err(Error::Malformed("the body took too long")),
    };
    Ok(Call {
        method: head.method.as_str().to_owned(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers,
        body,
    })
}
