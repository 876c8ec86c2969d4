//! One end of a connection.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::pipe::Conn;
use super::world::{current, try_current};
use crate::runtime::seam::{OutBuf, Stream};
use crate::runtime::{Direction, Peer};

/// A simulated connection; the last clone closes it.
#[derive(Clone)]
pub struct SimSocket {
    end: Rc<End>,
}

struct End {
    conn: Rc<RefCell<Conn>>,
    side: usize,
}

impl SimSocket {
    pub(super) fn new(conn: Rc<RefCell<Conn>>, side: usize) -> Self {
        Self { end: Rc::new(End { conn, side }) }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        try_current(|world| {
            self.conn.borrow_mut().close(self.side, world);
            if Rc::strong_count(&self.conn) == 1 {
                let id = self.conn.borrow().id;
                if let Ok(mut net) = world.net().try_borrow_mut() {
                    net.forget(id);
                }
            }
        });
    }
}

/// An operation under way. Dropped before its end, it leaves a mark on the connection.
struct Begun {
    end: Rc<End>,
    writes: bool,
    over: bool,
}

impl Begun {
    fn new(end: &Rc<End>, writes: bool) -> Self {
        let conn = end.conn.borrow();
        let lost = if writes { conn.pipes[end.side].write_lost } else { conn.pipes[1 - end.side].read_lost };
        assert!(!lost, "an operation was dropped before its end, and its connection is used on");
        drop(conn);
        Self { end: end.clone(), writes, over: false }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.over {
            let side = self.end.side;
            let mut conn = self.end.conn.borrow_mut();
            if self.writes {
                conn.pipes[side].write_lost = true;
            } else {
                conn.pipes[1 - side].read_lost = true;
            }
        }
    }
}

impl End {
    async fn write(self: Rc<Self>, bytes: &[u8]) -> io::Result<()> {
        let mut begun = Begun::new(&self, true);
        let mut from = 0;
        let result = loop {
            if from >= bytes.len() {
                break Ok(());
            }
            let step = poll_fn(|cx| {
                current(|world| self.conn.borrow_mut().poll_write(self.side, &bytes[from..], cx, world))
            });
            match step.await {
                Ok(count) => from += count,
                Err(error) => break Err(error),
            }
        };
        begun.over = true;
        result
    }
}

impl Stream for SimSocket {
    type Handle = (u64, usize);

    fn handle(&self) -> (u64, usize) {
        (self.end.conn.borrow().id, self.end.side)
    }

    fn shutdown_by(&(id, side): &(u64, usize), direction: Direction) {
        current(|world| {
            let Some(conn) = world.net().borrow().find(id) else { return };
            let mut conn = conn.borrow_mut();
            if matches!(direction, Direction::Read | Direction::Both) {
                conn.shut_read(side);
            }
            if matches!(direction, Direction::Write | Direction::Both) {
                conn.shut_write(side, world);
            }
        });
    }

    fn read(&self, buf: BytesMut) -> impl Future<Output = (io::Result<usize>, BytesMut)> + use<> + 'static {
        let end = self.end.clone();
        async move {
            let mut buf = buf;
            let room = buf.capacity() - buf.len();
            if room == 0 {
                return (Err(io::Error::from(io::ErrorKind::InvalidInput)), buf);
            }
            let mut begun = Begun::new(&end, false);
            let result =
                poll_fn(|cx| current(|world| end.conn.borrow_mut().poll_read(end.side, room, cx, world)))
                    .await;
            begun.over = true;
            let result = result.map(|bytes| {
                buf.extend_from_slice(&bytes);
                bytes.len()
            });
            (result, buf)
        }
    }

    fn write_range<B: OutBuf>(
        &self,
        buf: B,
        from: usize,
        to: usize,
    ) -> impl Future<Output = (io::Result<()>, B)> + use<B> {
        let end = self.end.clone();
        async move {
            let result = end.write(buf.as_ref().get(from..to).unwrap_or(&[])).await;
            (result, buf)
        }
    }

    fn write_both(
        &self,
        first: Bytes,
        second: Bytes,
    ) -> impl Future<Output = io::Result<()>> + use<> + 'static {
        let end = self.end.clone();
        async move {
            end.clone().write(&first).await?;
            end.write(&second).await
        }
    }

    fn write_pieces(&self, pieces: Vec<Bytes>) -> impl Future<Output = io::Result<()>> + use<> + 'static {
        let end = self.end.clone();
        async move {
            for piece in pieces {
                end.clone().write(&piece).await?;
            }
            Ok(())
        }
    }

    fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let end = &self.end;
        match current(|world| end.conn.borrow_mut().write(end.side, bytes, world))? {
            0 if !bytes.is_empty() => Err(io::Error::from(io::ErrorKind::WouldBlock)),
            count => Ok(count),
        }
    }

    fn readable(&self) -> impl Future<Output = io::Result<()>> + use<> + 'static {
        let end = self.end.clone();
        poll_fn(move |cx| current(|world| end.conn.borrow_mut().poll_readable(end.side, cx, world)).map(Ok))
    }

    fn peer(&self) -> Peer {
        let (conn, side) = (self.end.conn.borrow(), self.end.side);
        let arrived = conn.arrived(side, current(|world| world.now_us()));
        let ended = arrived.fin || conn.read_shut(side);
        if arrived.reset || (ended && conn.write_shut(side)) {
            Peer::Gone
        } else if ended {
            Peer::HalfClosed
        } else {
            Peer::Open
        }
    }

    fn is_quiet(&self) -> bool {
        !self.end.conn.borrow().is_readable(self.end.side, current(|world| world.now_us()))
    }

    fn has_unread(&self) -> bool {
        self.end.conn.borrow().arrived(self.end.side, current(|world| world.now_us())).bytes > 0
    }

    fn reset_on_close(&self) {
        self.end.conn.borrow_mut().reset_on_close[self.end.side] = true;
    }
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimSocket").field("side", &self.end.side).finish_non_exhaustive()
    }
}
