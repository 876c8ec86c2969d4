//! Request ids: which of the clients' we accept, and how ours are made.

/// Longest request id accepted from a client.
const MAX_LEN: usize = 128;

/// Marks in a request id by which some engines read addresses to connect to. A client must not choose those.
const ADDRESS_MARKS: [&[u8]; 2] = [b"___prefill_addr_", b"___decode_addr_"];

/// Whether a client's `x-request-id` may reach an engine: 1 to 128 of `A-Z a-z 0-9 . _ : -`, and nothing in it that an
/// engine would take for another engine's address.
pub fn is_well_formed_request_id(value: &[u8]) -> bool {
    (1..=MAX_LEN).contains(&value.len())
        && value.iter().all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(b))
        && !ADDRESS_MARKS.iter().any(|mark| memchr::memmem::find(value, mark).is_some())
}

/// A request id made here: 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId([u8; 32]);

impl RequestId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("")
    }
}

/// Makes request ids: a permutation of a counter, so that no generator repeats itself within 2^64 ids, and two with
/// different seeds collide no more often than random 128-bit numbers. Not secret.
///
/// Source of the mixing function: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
#[derive(Clone, Debug)]
pub struct RequestIds {
    high: u64,
    low: u64,
}

impl RequestIds {
    /// A generator; give every shard of every process its own random seed.
    pub fn new(seed: u128) -> Self {
        Self { high: (seed >> 64) as u64, low: seed as u64 }
    }

    /// The next id.
    pub fn next_id(&mut self) -> RequestId {
        self.high = self.high.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.low = self.low.wrapping_add(0xd1b5_4a32_d192_ed03);
        let wide = (u128::from(mix(self.high)) << 64) | u128::from(mix(self.low));
        let mut text = [0u8; 32];
        for (at, digit) in text.iter_mut().enumerate() {
            let nibble = (wide >> (124 - 4 * at)) as u8 & 0xf;
            *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
        }
        RequestId(text)
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
