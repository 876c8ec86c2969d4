//! Going over the text of strings, a vector at a time.
//!
//! Real prompts hold an escape every line, so runs of plain text are short and begin anew often: what counts is how few
//! instructions one takes. A library's search is quicker over kilobytes and slower here, as it is not inlined.
//!
//! The vector is that of AVX2 where the processor has it, else that of SSE2, which every x86-64 has, and on other
//! machines a word of eight bytes.
#![allow(unsafe_code)]

/// Whether a byte ends a run of plain text in a string: quote, backslash, raw control character.
#[inline]
fn is_stop(byte: u8) -> bool {
    byte == b'"' || byte == b'\\' || byte < 0x20
}

/// The character of an escape of two bytes, by its second one.
#[inline]
pub(crate) fn simple_escape(second: u8) -> Option<u8> {
    Some(match second {
        b'n' => b'\n',
        b'"' | b'\\' | b'/' => second,
        b't' => b'\t',
        b'r' => b'\r',
        b'b' => 8,
        b'f' => 12,
        _ => return None,
    })
}

/// Where plain text and escapes of two bytes end: at a quote, at another escape, at a raw control character, or at the
/// end of `bytes`. Begins at `at`; the second value tells whether there was any escape.
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

/// Decodes plain text and escapes of two bytes, from `at` on into `into`, until another byte comes, a vector does not
/// fit any more, or less than a vector is left: the bytes read and those written.
#[inline]
pub(crate) fn decode(bytes: &[u8], at: usize, into: &mut [u8]) -> (usize, usize) {
    lanes::decode(bytes, at, into)
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
            Some(&second) if simple_escape(second).is_some() => at += 2,
            _ => return (at, escaped),
        }
        escaped = true;
    }
}

/// [`decode`] with vectors of `N` bytes.
#[inline(always)]
fn decode_by<const N: usize>(
    bytes: &[u8],
    from: usize,
    into: &mut [u8],
    first: impl Fn(&[u8; N]) -> Option<usize>,
) -> (usize, usize) {
    let (mut at, mut written) = (from, 0);
    // Vectors are copied whole and the end moved back to where one was to stop.
    while let Some(run) = bytes.get(at..).and_then(<[u8]>::first_chunk::<N>)
        && let Some(room) = into.get_mut(written..).and_then(<[u8]>::first_chunk_mut::<N>)
    {
        *room = *run;
        let Some(found) = first(run) else {
            at += N;
            written += N;
            continue;
        };
        at += found;
        written += found;
        let escaped = if bytes.get(at) == Some(&b'\\') { bytes.get(at + 1) } else { None };
        let (Some(decoded), Some(slot)) =
            (escaped.and_then(|&second| simple_escape(second)), room.get_mut(found))
        else {
            break;
        };
        *slot = decoded;
        at += 2;
        written += 1;
    }
    (at - from, written)
}

#[cfg(target_arch = "x86_64")]
mod lanes {
    use std::arch::x86_64::{
        _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8,
        _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_min_epu8, _mm256_movemask_epi8, _mm256_or_si256,
        _mm256_set1_epi8,
    };

    use super::{decode_by, text_end_by};

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

    #[inline]
    #[target_feature(enable = "avx2")]
    fn first_wide(run: &[u8; 32]) -> Option<usize> {
        // SAFETY: the load is of exactly the run's bytes and need not be aligned.
        let bytes = unsafe { _mm256_loadu_si256(run.as_ptr().cast()) };
        let quotes = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(b'"' as i8));
        let slashes = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(b'\\' as i8));
        let controls = _mm256_cmpeq_epi8(_mm256_min_epu8(bytes, _mm256_set1_epi8(0x1f)), bytes);
        let found = _mm256_movemask_epi8(_mm256_or_si256(_mm256_or_si256(quotes, slashes), controls));
        if found == 0 { None } else { Some(found.trailing_zeros() as usize) }
    }

    #[target_feature(enable = "avx2")]
    fn text_end_wide(bytes: &[u8], at: usize) -> (usize, bool) {
        text_end_by(bytes, at, |run| first_wide(run))
    }

    #[target_feature(enable = "avx2")]
    fn decode_wide(bytes: &[u8], at: usize, into: &mut [u8]) -> (usize, usize) {
        decode_by(bytes, at, into, |run| first_wide(run))
    }

    #[inline]
    pub fn text_end(bytes: &[u8], at: usize) -> (usize, bool) {
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has it.
            unsafe { text_end_wide(bytes, at) }
        } else {
            text_end_by(bytes, at, first)
        }
    }

    #[inline]
    pub fn decode(bytes: &[u8], at: usize, into: &mut [u8]) -> (usize, usize) {
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has it.
            unsafe { decode_wide(bytes, at, into) }
        } else {
            decode_by(bytes, at, into, first)
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn both_widths_agree() {
            let mut bytes = Vec::new();
            for n in 0..400usize {
                bytes.extend(std::iter::repeat_n(b'a' + (n % 26) as u8, n % 45));
                bytes.extend_from_slice([&b"\\n"[..], b"\\\"", b"\\\\", b"", b"\xc3\xa9"][n % 5]);
            }
            bytes.extend_from_slice(b"\"");
            for at in 0..bytes.len() {
                // Not from the middle of an escape.
                if at > 0 && bytes[at - 1] == b'\\' {
                    continue;
                }
                assert_eq!(text_end(&bytes, at), text_end_by(&bytes, at, first));
                let mut rooms = [[0; 300], [0; 300]];
                let wide = decode(&bytes, at, &mut rooms[0]);
                // Each goes as far as whole vectors of its own fit.
                let narrow = decode_by(&bytes, at, &mut rooms[1], first);
                let common = wide.1.min(narrow.1);
                assert_eq!(rooms[0][..common], rooms[1][..common]);
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod lanes {
    use super::{decode_by, text_end_by};

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

    #[inline]
    pub fn decode(bytes: &[u8], at: usize, into: &mut [u8]) -> (usize, usize) {
        decode_by(bytes, at, into, first)
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
    fn escapes_of_two_bytes_are_passed_and_others_are_not() {
        for (text, end, escaped) in [
            (&br#"a\nb\"c"d"#[..], 7, true),
            (br#"\\"#, 2, true),
            (br#"\u0041"#, 0, false),
            (br"\x", 0, false),
            (br"a\", 1, false),
            (b"a\\n\x01", 3, true),
            (b"0123456789012345678901234567890123456789\\\"\"", 42, true),
        ] {
            assert_eq!(text_end(text, 0), (end, escaped), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn text_is_decoded_as_far_as_it_is_plain() {
        let text = format!("{}\\n{}\\\"{}\\u0041", "a".repeat(50), "b".repeat(3), "c".repeat(70));
        let plain = format!("{}\n{}\"{}", "a".repeat(50), "b".repeat(3), "c".repeat(70));
        let mut padded = text.clone().into_bytes();
        padded.extend_from_slice(&[b'"'; 40]);
        let mut into = [0; 200];
        let (read, written) = decode(&padded, 0, &mut into);
        assert_eq!(&text[read..], "\\u0041");
        assert_eq!(&into[..written], plain.as_bytes());
        // Without room for a vector nothing is read.
        assert_eq!(decode(&padded, 0, &mut into[..7]), (0, 0));
    }
}
