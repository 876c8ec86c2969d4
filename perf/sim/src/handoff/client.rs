//! Requests from one engine to another.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::handshake;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longest answer taken, bytes.
const MAX_ANSWER: usize = 16 << 20;

/// Posts JSON to `addr` (`host:port`) and reads the whole answer. Dropping the future closes the connection, so that the
/// other side notices.
pub(crate) async fn post(
    addr: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Result<(StatusCode, Bytes), String> {
    let failed = |e: &dyn std::fmt::Display| format!("{addr}: {e}");
    let stream = TcpStream::connect(addr).await.map_err(|e| failed(&e))?;
    stream.set_nodelay(true).map_err(|e| failed(&e))?;
    let (mut sender, conn) = handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
    let mut request = Request::post(path)
        .header(HOST, addr)
        .header(CONNECTION, "close")
        .header(CONTENT_TYPE, "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body)).map_err(|e| failed(&e))?;
    let asking = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await?.to_bytes();
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((status, body))
    };
    // Both in this task: nothing of the connection outlives the caller.
    let (answer, _) = tokio::join!(asking, conn);
    answer.map_err(|e| failed(&e))
}
