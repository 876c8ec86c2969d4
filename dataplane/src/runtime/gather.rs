//! Several buffers written by one system call.
#![allow(unsafe_code)]

use bytes::{Buf, Bytes};
use monoio::buf::IoVecBuf;

/// Several buffers that leave together, and how far they have.
pub trait Vectored: IoVecBuf {
    /// Whether nothing is left to be written.
    fn is_written(&self) -> bool;

    /// Drops `count` written bytes from the front.
    fn advance(&mut self, count: usize);

    /// The first buffer that is not written to its end.
    #[cfg(feature = "glommio")]
    fn first(&self) -> &[u8];
}

/// A head and a body that leave together without being copied into one buffer.
///
/// The vector of pointers lives in a box of its own: the value itself moves while an operation is in flight,
/// what the kernel looks at does not.
pub struct Gather {
    bufs: [Bytes; 2],
    iov: Box<[libc::iovec; 2]>,
}

impl Gather {
    /// Gathers `first` and then `second`.
    pub fn new(first: Bytes, second: Bytes) -> Self {
        let mut this = Self { bufs: [first, second], iov: Box::new([EMPTY, EMPTY]) };
        this.point();
        this
    }

    fn point(&mut self) {
        for (slot, buf) in self.iov.iter_mut().zip(&self.bufs) {
            *slot = point(buf);
        }
    }
}

impl Vectored for Gather {
    fn is_written(&self) -> bool {
        self.bufs.iter().all(Bytes::is_empty)
    }

    fn advance(&mut self, count: usize) {
        let first = count.min(self.bufs[0].len());
        self.bufs[0].advance(first);
        let second = (count - first).min(self.bufs[1].len());
        self.bufs[1].advance(second);
        self.point();
    }

    #[cfg(feature = "glommio")]
    fn first(&self) -> &[u8] {
        self.bufs.iter().find(|buf| !buf.is_empty()).map_or(&[], |buf| buf)
    }
}

/// Entries given to the kernel at a time; what is beyond goes out with a later write.
const MOST: usize = 64;

/// Any number of buffers that leave together: a head and a body that was cut.
///
/// The vector of pointers is on the heap and so stays where it is while the value moves.
pub struct Pieces {
    bufs: Vec<Bytes>,
    iov: Vec<libc::iovec>,
    /// How many of both are written.
    done: usize,
}

impl Pieces {
    /// Gathers `bufs` in their order.
    pub fn new(mut bufs: Vec<Bytes>) -> Self {
        bufs.retain(|buf| !buf.is_empty());
        let iov = bufs.iter().map(point).collect();
        Self { bufs, iov, done: 0 }
    }
}

impl Vectored for Pieces {
    fn is_written(&self) -> bool {
        self.done >= self.bufs.len()
    }

    #[cfg(feature = "glommio")]
    fn first(&self) -> &[u8] {
        self.bufs.get(self.done).map_or(&[], |buf| buf)
    }

    fn advance(&mut self, mut count: usize) {
        while let (Some(buf), Some(slot)) = (self.bufs.get_mut(self.done), self.iov.get_mut(self.done)) {
            let part = count.min(buf.len());
            buf.advance(part);
            count -= part;
            *slot = point(buf);
            if !buf.is_empty() {
                return;
            }
            self.done += 1;
        }
    }
}

fn point(buf: &Bytes) -> libc::iovec {
    libc::iovec { iov_base: buf.as_ptr() as *mut libc::c_void, iov_len: buf.len() }
}

const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

// SAFETY: the vector is boxed, so its address does not change when the value moves; it points into `Bytes` that
// the value owns, whose storage is on the heap or static and is not changed while the runtime owns the value
// (`advance` needs `&mut self`). The length is that of the array.
unsafe impl IoVecBuf for Gather {
    fn read_iovec_ptr(&self) -> *const libc::iovec {
        self.iov.as_ptr()
    }

    fn read_iovec_len(&self) -> usize {
        self.iov.len()
    }
}

// SAFETY: the vector's storage is on the heap and does not move with the value; `done` is never beyond its length, and
// the length told is that of what follows. It points into `Bytes` that the value owns, whose storage is on the heap or
// static and is not changed while the runtime owns the value (`advance` needs `&mut self`).
unsafe impl IoVecBuf for Pieces {
    fn read_iovec_ptr(&self) -> *const libc::iovec {
        self.iov.get(self.done..).unwrap_or_default().as_ptr()
    }

    fn read_iovec_len(&self) -> usize {
        self.iov.len().saturating_sub(self.done).min(MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_advance_over_any_number_of_borders() {
        let parts = [&b"abc"[..], b"", b"d", b"efgh"].map(Bytes::from_static);
        let mut pieces = Pieces::new(parts.to_vec());
        let lengths =
            |pieces: &Pieces| pieces.iov[pieces.done..].iter().map(|entry| entry.iov_len).collect::<Vec<_>>();
        assert_eq!(lengths(&pieces), [3, 1, 4]);
        pieces.advance(2);
        assert_eq!(lengths(&pieces), [1, 1, 4]);
        pieces.advance(4);
        assert_eq!((lengths(&pieces), pieces.bufs[2].as_ref()), (vec![2], &b"gh"[..]));
        assert_eq!((pieces.read_iovec_len(), pieces.is_written()), (1, false));
        pieces.advance(9);
        assert!(pieces.is_written() && pieces.read_iovec_len() == 0);
        let many = Pieces::new(vec![Bytes::from_static(b"x"); MOST + 9]);
        assert_eq!(many.read_iovec_len(), MOST);
    }

    #[test]
    fn advance_crosses_the_border() {
        let mut gather = Gather::new(Bytes::from_static(b"abc"), Bytes::from_static(b"defg"));
        assert!(!gather.is_written());
        gather.advance(2);
        assert_eq!((gather.iov[0].iov_len, gather.iov[1].iov_len), (1, 4));
        gather.advance(3);
        assert_eq!((gather.iov[0].iov_len, gather.iov[1].iov_len), (0, 2));
        gather.advance(9);
        assert!(gather.is_written());
    }
}
