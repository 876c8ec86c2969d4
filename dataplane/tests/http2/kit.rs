//! A client of HTTP/2.

use std::future::Future;
use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, StatusCode};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::common::{PATIENCE, chat_body};

/// Runs an asynchronous test.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE * 3, test).await.unwrap() })
}

/// Waits for something outside while the client's connection goes on.
pub async fn meanwhile<T>(wait: impl FnOnce() -> T) {
    drop(tokio::task::block_in_place(wait));
}

/// One connection.
pub struct Client {
    pub requests: SendRequest<Bytes>,
    /// How the connection ends.
    pub ended: JoinHandle<Result<(), h2::Error>>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// Why it was cut.
    pub cut: Option<Reason>,
}

impl Client {
    pub async fn connect(addr: SocketAddr) -> Self {
        Self::with(addr, &Builder::new()).await
    }

    pub async fn with(addr: SocketAddr, builder: &Builder) -> Self {
        let socket = TcpStream::connect(addr).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let (requests, connection) = builder.handshake(socket).await.unwrap();
        Self { requests, ended: tokio::spawn(connection) }
    }

    /// Sends a request; its body is what `body` is, or to be sent where it is `None`.
    pub async fn send(
        &self,
        request: Request<()>,
        body: Option<&[u8]>,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut requests = self.requests.clone().ready().await.unwrap();
        let (answer, mut stream) =
            requests.send_request(request, body.is_some_and(<[u8]>::is_empty)).unwrap();
        if let Some(body) = body.filter(|body| !body.is_empty()) {
            // It may have been refused before its body.
            let _ = stream.send_data(Bytes::copy_from_slice(body), true);
        }
        (answer, stream)
    }

    pub async fn ask(&self, request: Request<()>, body: &[u8]) -> Answer {
        let (answer, _stream) = self.send(request, Some(body)).await;
        whole(answer).await
    }

    pub async fn chat(&self, text: &str) -> Answer {
        let body = chat_body(text);
        self.ask(post("/v1/chat/completions", Some(body.len())), body.as_bytes()).await
    }
}

/// All of an answer, read as fast as it comes.
pub async fn whole(answer: ResponseFuture) -> Answer {
    let answer = match answer.await {
        Ok(answer) => answer,
        Err(error) => {
            let cut = error.reason();
            return Answer { status: StatusCode::IM_A_TEAPOT, headers: HeaderMap::new(), body: vec![], cut };
        }
    };
    let (head, mut stream) = answer.into_parts();
    let mut answer = Answer { status: head.status, headers: head.headers, body: Vec::new(), cut: None };
    while let Some(piece) = stream.data().await {
        match piece {
            Ok(piece) => {
                stream.flow_control().release_capacity(piece.len()).unwrap();
                answer.body.extend_from_slice(&piece);
            }
            Err(error) => {
                answer.cut = Some(error.reason().unwrap_or(Reason::NO_ERROR));
                return answer;
            }
        }
    }
    assert!(stream.trailers().await.unwrap().is_none());
    answer
}

/// The next piece of an answer.
pub async fn piece(stream: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let piece = stream.data().await;
    if let Some(Ok(piece)) = &piece {
        stream.flow_control().release_capacity(piece.len()).unwrap();
    }
    piece
}

pub fn post(path: &str, length: Option<usize>) -> Request<()> {
    let mut request = Request::post(format!("http://t{path}")).header("content-type", "application/json");
    if let Some(length) = length {
        request = request.header("content-length", length);
    }
    request.body(()).unwrap()
}

pub fn streaming() -> String {
    r#"{"model":"m","stream":true,"max_tokens":5,"messages":[{"role":"user","content":"hi"}]}"#.to_owned()
}
