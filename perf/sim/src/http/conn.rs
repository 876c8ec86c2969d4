//! The listener and its connections: accepts under a limit, closes and opens again on demand, resets connections.

use super::route;
use crate::engine::{Engine, Gate};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

/// Bytes that are no HTTP.
const NONSENSE: &[u8] = b"\x00\xff\xfe this is no protocol at all \r\n\r\n\x01\x02";
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;
/// Pause after an accept error that is not of one connection (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// How a connection ends, decided by the answer it carries.
#[derive(Debug, Default)]
pub(crate) struct ConnControl {
    reset: AtomicBool,
    garbage: AtomicBool,
}

impl ConnControl {
    /// Closing the connection sends RST instead of FIN.
    pub fn reset_on_close(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    /// The next write is replaced by nonsense, then the connection ends.
    pub fn send_garbage(&self) {
        self.garbage.store(true, Ordering::Relaxed);
    }
}

struct Conn {
    stream: TcpStream,
    control: Arc<ConnControl>,
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.control.garbage.load(Ordering::Relaxed) {
            _ = ready!(Pin::new(&mut self.stream).poll_write(cx, NONSENSE))?;
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "nonsense sent on demand")));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        if self.control.reset.load(Ordering::Relaxed) {
            _ = self.stream.set_zero_linger();
        }
    }
}

/// An address held whether or not it is listened on, so that closing the listener for a while loses the port to
/// nobody.
pub(crate) struct Place {
    addr: SocketAddr,
    _holder: TcpSocket,
}

fn socket(addr: SocketAddr) -> io::Result<TcpSocket> {
    let s = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    s.set_reuseaddr(true)?;
    s.bind(addr)?;
    Ok(s)
}

impl Place {
    /// Takes `addr`. A second socket bound with SO_REUSEADDR, which never listens, keeps the port from being handed
    /// out while the first is closed.
    pub fn take(addr: SocketAddr) -> io::Result<Self> {
        let holder = socket(addr)?;
        let addr = holder.local_addr()?;
        Ok(Self { addr, _holder: holder })
    }

    /// The address, with its real port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Listens; needs a runtime's context.
    pub fn listen(&self) -> io::Result<TcpListener> {
        socket(self.addr)?.listen(BACKLOG)
    }
}

/// Accepts until the engine stops.
pub(crate) async fn serve(engine: Arc<Engine>, place: Place, first: Option<TcpListener>) {
    let mut listener = first;
    let mut gate = engine.gate.subscribe();
    let places = Arc::new(Semaphore::new(engine.options.max_connections));
    loop {
        let Gate { refuse, stop, .. } = *gate.borrow_and_update();
        if stop {
            return;
        }
        if refuse {
            listener = None;
        } else if listener.is_none() {
            match place.listen() {
                Ok(l) => listener = Some(l),
                Err(e) => {
                    tracing::warn!(address = %place.addr(), error = %e, "cannot listen again, will retry");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            }
        }
        let Some(open) = &listener else {
            if gate.changed().await.is_err() {
                return;
            }
            continue;
        };
        let accept = async {
            let permit = Arc::clone(&places).acquire_owned().await.ok();
            (open.accept().await, permit)
        };
        tokio::select! {
            changed = gate.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            (accepted, permit) = accept => match accepted {
                Ok((stream, _)) => {
                    let engine = Arc::clone(&engine);
                    tokio::spawn(async move {
                        connection(engine, stream).await;
                        drop(permit);
                    });
                }
                Err(e) => {
                    tracing::debug!(error = %e, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Counts a connection for as long as it is open.
struct Counted(Arc<Engine>);

impl Counted {
    fn new(engine: &Arc<Engine>) -> Self {
        let mut core = engine.core();
        core.traffic.connections += 1;
        core.traffic.connections_total += 1;
        drop(core);
        Self(Arc::clone(engine))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.core().traffic.connections -= 1;
    }
}

async fn connection(engine: Arc<Engine>, stream: TcpStream) {
    _ = stream.set_nodelay(true);
    let mut gate = engine.gate.subscribe();
    let resets = gate.borrow_and_update().resets;
    let _counted = Counted::new(&engine);
    let control = Arc::new(ConnControl::default());
    let io = TokioIo::new(Conn { stream, control: Arc::clone(&control) });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).max_headers(256).writev(false);
    // uvicorn closes a connection on which no request begins in time; hyper's timer for the head starts there too.
    match engine.options.keep_alive {
        Some(idle) => builder.header_read_timeout(idle),
        None => builder.header_read_timeout(None),
    };
    let service = service_fn(|request| route::answer(Arc::clone(&engine), Arc::clone(&control), request));
    let serving = builder.serve_connection(io, service).with_upgrades();
    tokio::pin!(serving);
    loop {
        tokio::select! {
            _ = &mut serving => return,
            changed = gate.changed() => {
                if changed.is_err() || gate.borrow_and_update().resets != resets {
                    control.reset_on_close();
                    return;
                }
            }
        }
    }
}
