//! Going over the text of strings, a vector at a time.
//!
//! Real prompts hold an escape every line, so runs of plain text are short and begin anew often. Where the processor has
//! AVX2, blocks of 64 bytes become sets of bits, in which escapes are told from what they escape without a branch (the
//! arithmetic is that of simdjson, Langdale and Lemire 2019), with AVX-512 in half as many instructions; else vectors of SSE2, which every x86-64 has, and on other
//! machines words of eight bytes are searched from stop to stop.
#![allow(unsafe_code)]

/// Whether a byte ends a run of plain text in a string: quote, backslash, raw control character.
#[inline]
fn is_stop(byte: u8) -> bool {
    byte == b'"' || byte == b'\\' || byte < 0x20
}

/// Whether an escape of two bytes with this second one is the only way, or the shortest, to write its character. A slash
/// needs none.
#[inline]
fn is_short(second: u8) -> bool {
    matches!(second, b'n' | b'"' | b'\\' | b't' | b'r' | b'b' | b'f')
}

/// Where plain text and [short](is_short) escapes end: at a quote, at another escape, at a raw control character, or at
/// the end of `bytes`. Begins at `at`; the second value tells whether there was any escape.
#[inline]
pub(crate) fn text_end(bytes: &[u8], at: usize) -> (usize, bool) {
    // Names and short values end within the first vector.
    if let Some(run) = bytes.get(at..).and_then(<[u8]>::first_chunk)
        && let Some(found) = lanes::first(run)
        && run.get(found) == Some(&b'"')
    {
        return (at + found, false);
    }
    lanes::text_end(bytes, at)
}

/// [`text_end`] with vectors of `N` bytes, in which `first` finds the first byte that ends plain text.
#[inline(always)]
fn text_end_by<const N: usize>(
    bytes: &[u8],
    mut at: usize,
    first: impl Fn(&[u8; N]) -> Option<usize>,
) -> (usize, bool) {
    let mut escaped = false;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let found = match rest.first_chunk::<N>() {
            Some(run) => match first(run) {
                Some(found) => found,
                None => {
                    at += N;
                    continue;
                }
            },
            None => match rest.iter().position(|&byte| is_stop(byte)) {
                Some(found) => found,
                None => return (bytes.len(), escaped),
            },
        };
        at += found;
        if bytes.get(at) != Some(&b'\\') {
            return (at, escaped);
        }
        match bytes.get(at + 1) {
            Some(&second) if is_short(second) => at += 2,
            _ => return (at, escaped),
        }
        escaped = true;
    }
}

#[cfg(target_arch = "x86_64")]
mod lanes {
    use std::arch::x86_64::{
        __m256i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128,
        _mm_set1_epi8, _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_cmpeq_epi8, _mm256_loadu_si256,
        _mm256_min_epu8, _mm256_movemask_epi8, _mm256_or_si256, _mm256_set1_epi8, _mm256_setzero_si256,
        _mm256_shuffle_epi8, _mm256_srli_epi16, _mm512_and_si512, _mm512_broadcast_i32x4,
        _mm512_cmpeq_epi8_mask, _mm512_cmplt_epu8_mask, _mm512_loadu_si512, _mm512_set1_epi8,
        _mm512_shuffle_epi8, _mm512_srli_epi16, _mm512_testn_epi8_mask,
    };

    use super::text_end_by;

    /// The first quote, backslash or control character.
    #[inline]
    pub fn first(run: &[u8; 16]) -> Option<usize> {
        // SAFETY: SSE2 belongs to every x86-64; the load is of exactly the run's bytes and need not be aligned.
        let found = unsafe {
            let bytes = _mm_loadu_si128(run.as_ptr().cast());
            let quotes = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'"' as i8));
            let slashes = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\' as i8));
            // Compared without sign, for which there is no instruction: what is its own minimum with 0x1f.
            let controls = _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1f)), bytes);
            _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quotes, slashes), controls))
        };
        if found == 0 { None } else { Some(found.trailing_zeros() as usize) }
    }

    /// Bytes that become one set of bits.
    const BLOCK: usize = 64;
    /// Every second bit, from the lowest on.
    const EVEN: u64 = 0x5555_5555_5555_5555;

    /// Sets of a block's bytes, the first one in the lowest bit.
    struct Sets {
        slashes: u64,
        /// Quotes and control characters.
        ends: u64,
        /// Bytes that are not the second one of a short escape.
        not_short: u64,
    }

    /// Tables for `not_short`, by the lower and the higher half of a byte: the halves of such a byte have a bit in common, 1
    /// for `"` (22), 2 for `\` (5c), 4 for `b`, `f` and `n` (62, 66, 6e), 8 for `r` and `t` (72, 74).
    const BY_LOW: [i8; 16] = [0, 0, 13, 0, 8, 0, 4, 0, 0, 0, 0, 0, 2, 0, 4, 0];
    const BY_HIGH: [i8; 16] = [0, 0, 1, 0, 0, 2, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0];

    /// The highest bit of each byte.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn bits(halves: [__m256i; 2]) -> u64 {
        let [low, high] = halves.map(|half| u64::from(_mm256_movemask_epi8(half) as u32));
        low | high << 32
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn sets_wide(block: &[u8; BLOCK]) -> Sets {
        // SAFETY: the loads are of exactly the block's and the tables' bytes and need not be aligned.
        let (halves, by_low, by_high) = unsafe {
            let half = block.as_ptr().cast::<__m256i>();
            let table = |of: &[i8; 16]| _mm256_broadcastsi128_si256(_mm_loadu_si128(of.as_ptr().cast()));
            ([_mm256_loadu_si256(half), _mm256_loadu_si256(half.add(1))], table(&BY_LOW), table(&BY_HIGH))
        };
        let nibble = _mm256_set1_epi8(0x0f);
        Sets {
            slashes: bits(halves.map(|half| _mm256_cmpeq_epi8(half, _mm256_set1_epi8(b'\\' as i8)))),
            ends: bits(halves.map(|half| {
                let quotes = _mm256_cmpeq_epi8(half, _mm256_set1_epi8(b'"' as i8));
                // Compared without sign, for which there is no instruction: what is its own minimum with 0x1f.
                let controls = _mm256_cmpeq_epi8(_mm256_min_epu8(half, _mm256_set1_epi8(0x1f)), half);
                _mm256_or_si256(quotes, controls)
            })),
            not_short: bits(halves.map(|half| {
                let low = _mm256_shuffle_epi8(by_low, _mm256_and_si256(half, nibble));
                let high = _mm256_shuffle_epi8(by_high, _mm256_and_si256(_mm256_srli_epi16(half, 4), nibble));
                _mm256_cmpeq_epi8(_mm256_and_si256(low, high), _mm256_setzero_si256())
            })),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn sets_widest(block: &[u8; BLOCK]) -> Sets {
        // SAFETY: the loads are of exactly the block's and the tables' bytes and need not be aligned.
        let (bytes, by_low, by_high) = unsafe {
            let table = |of: &[i8; 16]| _mm512_broadcast_i32x4(_mm_loadu_si128(of.as_ptr().cast()));
            (_mm512_loadu_si512(block.as_ptr().cast()), table(&BY_LOW), table(&BY_HIGH))
        };
        let nibble = _mm512_set1_epi8(0x0f);
        let low = _mm512_shuffle_epi8(by_low, _mm512_and_si512(bytes, nibble));
        let high = _mm512_shuffle_epi8(by_high, _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble));
        Sets {
            slashes: _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(b'\\' as i8)),
            ends: _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(b'"' as i8))
                | _mm512_cmplt_epu8_mask(bytes, _mm512_set1_epi8(0x20)),
            not_short: _mm512_testn_epi8_mask(low, high),
        }
    }

    /// [`text_end`] by blocks, of which `sets` finds what matters.
    #[inline(always)]
    fn text_end_blocks(bytes: &[u8], mut at: usize, sets: impl Fn(&[u8; BLOCK]) -> Sets) -> (usize, bool) {
        let mut any = false;
        // 1 where the block begins with the second byte of an escape.
        let mut carried = 0;
        while let Some(block) = bytes.get(at..).and_then(<[u8]>::first_chunk::<BLOCK>) {
            let Sets { slashes, ends, not_short } = sets(block);
            let slashes = slashes & !carried;
            // A run of backslashes escapes every second byte from its second one on. Adding a run's first bit to the run
            // carries to the bit behind it; by whether a run begins at an odd place its odd or its even bits are meant.
            let follows = slashes << 1 | carried;
            let odd_starts = slashes & !EVEN & !follows;
            let (behind, overflow) = odd_starts.overflowing_add(slashes);
            let escaped = (EVEN ^ behind << 1) & follows;
            let odd = escaped & not_short;
            let stops = (ends & !escaped) | odd;
            if stops != 0 {
                let first = stops.trailing_zeros();
                let before = escaped & ((1u64 << first) - 1);
                // An escape that is not short is stopped at before its backslash, which may be the last byte of the block
                // before.
                let back = odd >> first & 1;
                return (at + first as usize - back as usize, any || before != 0);
            }
            any |= escaped != 0;
            carried = u64::from(overflow);
            at += BLOCK;
        }
        // The backslash of an escape that the last block did not end.
        at -= carried as usize;
        let (end, escaped) = text_end_by(bytes, at, first);
        (end, any || escaped)
    }

    #[target_feature(enable = "avx2")]
    fn text_end_wide(bytes: &[u8], at: usize) -> (usize, bool) {
        text_end_blocks(bytes, at, |block| sets_wide(block))
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn text_end_widest(bytes: &[u8], at: usize) -> (usize, bool) {
        text_end_blocks(bytes, at, |block| sets_widest(block))
    }

    #[inline]
    pub fn text_end(bytes: &[u8], at: usize) -> (usize, bool) {
        if is_x86_feature_detected!("avx512bw") {
            // SAFETY: the processor has it, and so the instructions that it builds on.
            unsafe { text_end_widest(bytes, at) }
        } else if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has it.
            unsafe { text_end_wide(bytes, at) }
        } else {
            text_end_by(bytes, at, first)
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// What every way finds that this processor has.
        fn ways(bytes: &[u8], at: usize) -> Vec<(usize, bool)> {
            let mut found = vec![text_end(bytes, at)];
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has it.
                found.push(unsafe { text_end_wide(bytes, at) });
            }
            found
        }

        #[test]
        fn all_ways_agree() {
            let ends: [&[u8]; 8] = [b"\"", b"\\u0041", b"\\/", b"\x01", b"\\", b"", b"\\\\\\u", b"\\\x01"];
            for end in ends {
                let mut bytes = Vec::new();
                for n in 0..400usize {
                    bytes.extend(std::iter::repeat_n(b'a' + (n % 26) as u8, n % 45));
                    bytes.extend_from_slice(
                        [&b"\\n"[..], b"\\\"", b"\\\\", b"", b"\xc3\xa9", b"\\\\\\\\\\t", b"/"][n % 7],
                    );
                }
                bytes.extend_from_slice(end);
                bytes.resize(bytes.len() + 70, b'x');
                for at in 0..bytes.len() {
                    for bytes in [&bytes[..], &bytes[..bytes.len() - 70]] {
                        let plain = text_end_by(bytes, at, first);
                        for found in ways(bytes, at) {
                            assert_eq!(found, plain, "{at} of {}, {end:?}", bytes.len());
                        }
                    }
                }
            }
        }

        #[test]
        fn every_escape_is_told_at_every_place() {
            for place in 0..140 {
                for second in 0..=255u8 {
                    let mut bytes = vec![b'a'; 150];
                    bytes[place] = b'\\';
                    bytes[place + 1] = second;
                    let plain = text_end_by(&bytes, 0, first);
                    for found in ways(&bytes, 0) {
                        assert_eq!(found, plain, "{second:#x} at {place}");
                    }
                    assert_eq!(plain.0 == 150, crate::json::find::is_short(second), "{second:#x}");
                }
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod lanes {
    use super::text_end_by;

    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;

    /// The first quote, backslash or control character. What is looked for leaves its high bit set; bits above the lowest
    /// may be wrong, as a borrow runs upwards, and only the lowest is used.
    #[inline]
    pub fn first(run: &[u8; 8]) -> Option<usize> {
        let word = u64::from_le_bytes(*run);
        let quotes = word ^ (LOW * u64::from(b'"'));
        let slashes = word ^ (LOW * u64::from(b'\\'));
        let found = ((quotes.wrapping_sub(LOW) & !quotes)
            | (slashes.wrapping_sub(LOW) & !slashes)
            | (word.wrapping_sub(LOW * 0x20) & !word))
            & HIGH;
        if found == 0 { None } else { Some((found.trailing_zeros() / 8) as usize) }
    }

    #[inline]
    pub fn text_end(bytes: &[u8], at: usize) -> (usize, bool) {
        text_end_by(bytes, at, first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_at_every_place_is_found_as_a_plain_search_does() {
        for length in 0..100 {
            for place in 0..length.max(1) {
                for byte in 0..=255u8 {
                    let mut bytes = vec![b'a'; length];
                    if let Some(slot) = bytes.get_mut(place) {
                        *slot = byte;
                    }
                    let plain = bytes.iter().position(|&byte| is_stop(byte)).unwrap_or(length);
                    assert_eq!(text_end(&bytes, 0), (plain, false), "{byte:#x} at {place} of {length}");
                }
            }
        }
    }

    #[test]
    fn short_escapes_are_passed_and_others_are_not() {
        for (text, end, escaped) in [
            (&br#"a\nb\"c"d"#[..], 7, true),
            (br#"\\"#, 2, true),
            (br#"\u0041"#, 0, false),
            (br"\x", 0, false),
            (br"\/", 0, false),
            (br"a\", 1, false),
            (b"a\\n\x01", 3, true),
            (b"0123456789012345678901234567890123456789\\\"\"", 42, true),
        ] {
            assert_eq!(text_end(text, 0), (end, escaped), "{}", String::from_utf8_lossy(text));
        }
    }
}
