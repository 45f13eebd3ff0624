//! A small HTTP client for the demo and the tests: one request, one connection, one answer.

use std::io;
use std::path::Path;
use std::time::Duration;

use http_types::{Method, Request, Url};
use serde_json::Value;
use smol::future;

/// How long one exchange may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// An answer: its status, and its body as JSON, or as a string where it is none.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Value,
}

/// A GET. `ca` is the certificate to trust for `https`.
///
/// # Errors
/// No answer, for whatever reason.
pub fn get(url: &str, ca: Option<&Path>) -> io::Result<Answer> {
    send(Method::Get, url, None, &[], ca)
}

/// A POST of JSON.
///
/// # Errors
/// No answer, for whatever reason.
pub fn post(url: &str, body: &Value, ca: Option<&Path>) -> io::Result<Answer> {
    send(Method::Post, url, Some(body), &[], ca)
}

/// [`post`], for those who do more than one thing at once.
///
/// # Errors
/// No answer, for whatever reason.
pub async fn post_async(url: Url, body: &Value, ca: Option<&Path>) -> io::Result<Answer> {
    in_time(exchange(request(Method::Post, &url, Some(body), &[]), &url, ca)).await
}

/// Any request.
///
/// # Errors
/// No answer, for whatever reason.
pub fn send(
    method: Method,
    url: &str,
    body: Option<&Value>,
    headers: &[(&str, &str)],
    ca: Option<&Path>,
) -> io::Result<Answer> {
    let url: Url = url.parse().map_err(io::Error::other)?;
    smol::block_on(in_time(exchange(request(method, &url, body, headers), &url, ca)))
}

fn request(method: Method, url: &Url, body: Option<&Value>, headers: &[(&str, &str)]) -> Request {
    let mut request = Request::new(method, url.clone());
    request.insert_header("connection", "close");
    for (name, value) in headers {
        request.insert_header(*name, *value);
    }
    if let Some(body) = body {
        request.insert_header("content-type", "application/json");
        request.set_body(body.to_string());
    }
    request
}

async fn in_time(exchange: impl Future<Output = io::Result<Answer>>) -> io::Result<Answer> {
    future::or(exchange, async {
        smol::Timer::after(TIMEOUT).await;
        Err(io::ErrorKind::TimedOut.into())
    })
    .await
}

async fn exchange(request: Request, url: &Url, ca: Option<&Path>) -> io::Result<Answer> {
    let host = url.host_str().ok_or(io::ErrorKind::InvalidInput)?;
    let port = url.port_or_known_default().ok_or(io::ErrorKind::InvalidInput)?;
    let stream = smol::net::TcpStream::connect((host, port)).await?;
    let mut response = if url.scheme() == "https" {
        let ca = ca.ok_or_else(|| io::Error::other("https without a certificate to trust"))?;
        let name = host.to_owned().try_into().map_err(io::Error::other)?;
        let stream = crate::tls::connector(ca)?.connect(name, stream).await?;
        async_h1::connect(stream, request).await
    } else {
        async_h1::connect(stream, request).await
    }
    .map_err(|error| io::Error::other(error.to_string()))?;
    let status = u16::from(response.status());
    let body = response.body_bytes().await.map_err(|error| io::Error::other(error.to_string()))?;
    let body = serde_json::from_slice(&body)
        .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&body).into_owned()));
    Ok(Answer { status, body })
}
