//! xxh3-64 of one block with AVX2.
//!
//! The library chooses its vectors when it is compiled, which for a program that is to run everywhere means those of
//! SSE2. This is the algorithm of the specification (`doc/xxhash_spec.md` of xxHash, XXH3 of large inputs) for inputs of
//! 241 to 1,024 bytes, which have neither a short form nor a scramble.
#![allow(unsafe_code)]

/// Inputs that are hashed here, bytes.
const LENGTHS: std::ops::RangeInclusive<usize> = 241..=1024;

/// xxh3-64 of `input` with `secret`; `None` where this is no input or no processor for it.
#[inline]
pub fn hash(input: &[u8], secret: &[u8; 192]) -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    if LENGTHS.contains(&input.len()) && is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has it, and the length was checked.
        return Some(unsafe { lanes::hash(input, secret) });
    }
    let _ = (input, secret, LENGTHS);
    None
}

#[cfg(target_arch = "x86_64")]
mod lanes {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi64, _mm256_loadu_si256, _mm256_mul_epu32, _mm256_set_epi64x,
        _mm256_shuffle_epi32, _mm256_storeu_si256, _mm256_xor_si256,
    };

    /// Bytes that go into the accumulators at a time.
    const STRIPE: usize = 64;
    const PRIMES_32: [u64; 3] = [0x9E37_79B1, 0x85EB_CA77, 0xC2B2_AE3D];
    const PRIMES_64: [u64; 5] = [
        0x9E37_79B1_85EB_CA87,
        0xC2B2_AE3D_27D4_EB4F,
        0x1656_67B1_9E37_79F9,
        0x85EB_CA77_C2B2_AE63,
        0x27D4_EB2F_1656_67C5,
    ];

    /// # Safety
    /// `input` has 64 to 1,024 bytes.
    #[target_feature(enable = "avx2")]
    pub unsafe fn hash(input: &[u8], secret: &[u8; 192]) -> u64 {
        let [p32_1, p32_2, p32_3] = PRIMES_32.map(|prime| prime as i64);
        let [p64_1, p64_2, p64_3, p64_4, p64_5] = PRIMES_64.map(|prime| prime as i64);
        let mut low = _mm256_set_epi64x(p64_3, p64_2, p64_1, p32_3);
        let mut high = _mm256_set_epi64x(p32_1, p64_5, p32_2, p64_4);
        let (data, key) = (input.as_ptr(), secret.as_ptr());
        let mut accumulate = |at: usize, key_at: usize| {
            // SAFETY: the caller keeps 64 bytes behind `at` within the input and behind `key_at` within the secret.
            let [first, second, first_key, second_key] = unsafe {
                [data.add(at), data.add(at + 32), key.add(key_at), key.add(key_at + 32)]
                    .map(|from| _mm256_loadu_si256(from.cast::<__m256i>()))
            };
            low = step(low, first, first_key);
            high = step(high, second, second_key);
        };
        // At most 15 stripes of the input, the secret going on by 8 bytes each: up to byte 112 + 64.
        let whole = (input.len() - 1) / STRIPE;
        for stripe in 0..whole {
            accumulate(stripe * STRIPE, stripe * 8);
        }
        // The last one ends where the input ends, and the secret 7 bytes before its own end.
        accumulate(input.len() - STRIPE, 192 - STRIPE - 7);
        let mut lanes = [0u64; 8];
        // SAFETY: the array has room for both, and need not be aligned.
        unsafe {
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), low);
            _mm256_storeu_si256(lanes.as_mut_ptr().add(4).cast(), high);
        }
        merge(&lanes, secret, (input.len() as u64).wrapping_mul(PRIMES_64[0]))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn step(sums: __m256i, data: __m256i, key: __m256i) -> __m256i {
        let mixed = _mm256_xor_si256(data, key);
        let product = _mm256_mul_epu32(mixed, _mm256_shuffle_epi32::<0b11_11_01_01>(mixed));
        // Each lane also adds its neighbour's data.
        let swapped = _mm256_shuffle_epi32::<0b01_00_11_10>(data);
        _mm256_add_epi64(_mm256_add_epi64(sums, swapped), product)
    }

    fn merge(lanes: &[u64; 8], secret: &[u8; 192], start: u64) -> u64 {
        let keys = secret[11..75].as_chunks::<8>().0;
        let mut sum = start;
        for (pair, keys) in lanes.as_chunks::<2>().0.iter().zip(keys.as_chunks::<2>().0) {
            let [one, other] = keys.map(u64::from_le_bytes);
            let product = u128::from(pair[0] ^ one) * u128::from(pair[1] ^ other);
            sum = sum.wrapping_add(product as u64 ^ (product >> 64) as u64);
        }
        sum ^= sum >> 37;
        sum = sum.wrapping_mul(0x1656_6791_9E37_79F9);
        sum ^ sum >> 32
    }
}

#[cfg(test)]
mod tests {
    use xxhash_rust::const_xxh3::const_custom_default_secret;
    use xxhash_rust::xxh3::{xxh3_64_with_secret, xxh3_64_with_seed};

    use super::*;

    #[test]
    fn every_length_hashes_as_the_library_does() {
        let bytes: Vec<u8> = (0..1100u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for seed in [0, 1, 0xDEAD_BEEF_0123_4567] {
            let secret = const_custom_default_secret(seed);
            for length in 0..=bytes.len() {
                let input = &bytes[..length];
                let found = hash(input, &secret);
                if let Some(found) = found {
                    assert_eq!(found, xxh3_64_with_secret(input, &secret), "{length}");
                    assert_eq!(found, xxh3_64_with_seed(input, seed), "{length}");
                }
                assert!(found.is_none() || LENGTHS.contains(&length));
            }
        }
    }
}
