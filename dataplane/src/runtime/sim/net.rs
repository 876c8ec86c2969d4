//! Listeners, connecting, and what may go wrong with it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::pipe::Conn;
use super::socket::SimSocket;
use super::world::{ProcessId, World, current, sleep};
use crate::runtime::seam::Acceptor;

/// Connections that wait for one listener before more are refused.
const BACKLOG: usize = 1024;

#[derive(Default)]
struct Backlog {
    waiting: VecDeque<(u64, SimSocket)>,
    wakers: Vec<Waker>,
}

struct Listening {
    owner: ProcessId,
    id: u64,
    backlog: Rc<RefCell<Backlog>>,
}

/// All listeners and connections of a world.
#[derive(Default)]
pub(super) struct Net {
    listeners: BTreeMap<SocketAddr, Vec<Listening>>,
    conns: BTreeMap<u64, Weak<RefCell<Conn>>>,
    silent: BTreeSet<SocketAddr>,
}

impl Net {
    /// See [`World::silence`].
    pub fn silence(&mut self, addr: SocketAddr, silent: bool) {
        if silent {
            self.silent.insert(addr)
        } else {
            self.silent.remove(&addr)
        };
        for conn in self.conns.values().filter_map(Weak::upgrade) {
            let mut conn = conn.borrow_mut();
            if conn.addr == addr {
                conn.silent = silent;
                conn.wake_all();
            }
        }
    }

    pub fn find(&self, id: u64) -> Option<Rc<RefCell<Conn>>> {
        self.conns.get(&id)?.upgrade()
    }

    pub fn forget(&mut self, id: u64) {
        self.conns.remove(&id);
    }
}

/// A listener of a simulated process.
pub struct SimListener {
    addr: SocketAddr,
    id: u64,
    backlog: Rc<RefCell<Backlog>>,
}

/// See [`Sim::listen`](super::Sim::listen). Listeners of one process share an address as with `SO_REUSEPORT`.
pub(super) fn listen(addr: SocketAddr) -> io::Result<SimListener> {
    current(|world| {
        let mut net = world.net().borrow_mut();
        let there = net.listeners.entry(addr).or_default();
        if there.iter().any(|other| other.owner != world.process()) {
            return Err(io::Error::from(io::ErrorKind::AddrInUse));
        }
        let backlog = Rc::<RefCell<Backlog>>::default();
        let id = world.number();
        there.push(Listening { owner: world.process(), id, backlog: backlog.clone() });
        Ok(SimListener { addr, id, backlog })
    })
}

/// Connects: refused where nobody listens, without an answer where there is silence.
pub(super) async fn connect(addr: SocketAddr, timeout: Duration) -> io::Result<SimSocket> {
    let (there_us, back_us, silent) = current(|world| {
        let (least, most) = world.options().wire_us;
        let once = || least + world.below(most - least + 1);
        (once(), once(), world.net().borrow().silent.contains(&addr))
    });
    if silent {
        sleep(timeout).await;
        return Err(io::Error::from(io::ErrorKind::TimedOut));
    }
    sleep(Duration::from_micros(there_us)).await;
    let client = current(|world| meet(world, addr))?;
    sleep(Duration::from_micros(back_us)).await;
    Ok(client)
}

fn meet(world: &World, addr: SocketAddr) -> io::Result<SimSocket> {
    let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
    let backlog = {
        let net = world.net().borrow();
        let there = net.listeners.get(&addr).filter(|there| !there.is_empty()).ok_or_else(refused)?;
        there[world.below(there.len() as u64) as usize].backlog.clone()
    };
    if backlog.borrow().waiting.len() >= BACKLOG {
        return Err(refused());
    }
    let id = world.number();
    let mut net = world.net().borrow_mut();
    let conn = Rc::new(RefCell::new(Conn::new(id, addr, net.silent.contains(&addr), world)));
    net.conns.insert(id, Rc::downgrade(&conn));
    drop(net);
    let mut waiting = backlog.borrow_mut();
    waiting.waiting.push_back((world.now_us(), SimSocket::new(conn.clone(), 1)));
    waiting.wakers.drain(..).for_each(Waker::wake);
    Ok(SimSocket::new(conn, 0))
}

impl Acceptor for SimListener {
    type Socket = SimSocket;

    async fn ready(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            let mut backlog = self.backlog.borrow_mut();
            if !backlog.waiting.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if !backlog.wakers.iter().any(|known| known.will_wake(cx.waker())) {
                backlog.wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    fn take(&self) -> io::Result<Option<SimSocket>> {
        Ok(self.backlog.borrow_mut().waiting.pop_front().map(|(_, socket)| socket))
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        super::world::try_current(|world| {
            if let Ok(mut net) = world.net().try_borrow_mut()
                && let Some(there) = net.listeners.get_mut(&self.addr)
            {
                there.retain(|listening| listening.id != self.id);
            }
        });
        // Connections that nobody took are closed.
        let waiting = std::mem::take(&mut self.backlog.borrow_mut().waiting);
        drop(waiting);
    }
}
