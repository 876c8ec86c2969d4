//! Deterministic answers. A token is four bytes of text, so that an answer given back as history has the length that
//! its usage said; its bytes need no escaping in JSON.

const OPENERS: [&[u8; 4]; 8] = [b"Sure", b"Well", b"Here", b"This", b"Yes,", b"Then", b"That", b"Both"];
const STARTS: [&[u8; 4]; 8] = [b" The", b" One", b" And", b" But", b" Any", b" Yet", b" All", b" Now"];
const ENDS: [&[u8; 4]; 8] = [b" it.", b" so.", b" us.", b" on.", b" up.", b" in.", b" me.", b" by."];
const WORDS: [&[u8; 4]; 64] = [
    b" the", b" and", b" for", b" you", b" are", b" not", b" can", b" has", b" one", b" two", b" sea",
    b" oar", b" jib", b" row", b" map", b" sky", b" sun", b" air", b" fog", b" bay", b" tug", b" rig",
    b" cog", b" hub", b" key", b" log", b" net", b" pin", b" rod", b" set", b" tip", b" web", b" act",
    b" add", b" ask", b" bid", b" cut", b" dip", b" end", b" fit", b" get", b" hit", b" let", b" mix",
    b" own", b" pay", b" put", b" run", b" say", b" try", b" use", b" win", b" big", b" dry", b" few",
    b" hot", b" low", b" new", b" old", b" raw", b" shy", b" six", b" ten", b" top",
];

/// Words of a sentence.
const SENTENCE: u32 = 12;

/// The text of token number `index` of the answer that belongs to `seed`.
pub fn token(seed: u64, index: u32) -> &'static str {
    let r = mix(seed ^ u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let bytes: &'static [u8; 4] = if index == 0 {
        OPENERS[r as usize % OPENERS.len()]
    } else {
        match index % SENTENCE {
            0 => STARTS[r as usize % STARTS.len()],
            11 => ENDS[r as usize % ENDS.len()],
            _ => WORDS[r as usize % WORDS.len()],
        }
    };
    std::str::from_utf8(bytes).unwrap_or("    ")
}

/// The first `len` tokens of an answer.
pub fn answer(seed: u64, len: u32) -> String {
    (0..len).map(|i| token(seed, i)).collect()
}

/// A word of four bytes, a blank before three letters, by its number; 64 different ones repeat.
pub fn word(index: u64) -> &'static [u8; 4] {
    WORDS[index as usize % WORDS.len()]
}

/// How long an answer is when the request does not say: 16 to 128 tokens.
pub fn natural_length(seed: u64) -> u32 {
    16 + (mix(seed ^ 0x6c65_6e67) % 113) as u32
}

/// SplitMix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
pub fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_stable_and_four_bytes_a_token() {
        let a = answer(7, 50);
        assert_eq!(a.len(), 200);
        assert_eq!(a, answer(7, 50));
        assert_ne!(a, answer(8, 50));
        assert!(a.bytes().all(|b| b.is_ascii_graphic() || b == b' '));
        assert!(!a.contains(['"', '\\']));
    }

    #[test]
    fn words_differ() {
        let words: std::collections::HashSet<_> = (0..64).map(word).collect();
        assert_eq!(words.len(), 64);
    }

    #[test]
    fn natural_lengths_stay_in_range() {
        assert!((0..10_000).map(natural_length).all(|n| (16..=128).contains(&n)));
    }
}
