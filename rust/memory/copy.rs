//! Moving payload between memories that other machines write at the same time.
//!
//! Written in assembly for one reason: the compiler may not split, repeat or merge these loads, and the loop must use
//! the widest vectors the core has while the wheel is built for the baseline. The choice is made once per process by
//! CPUID. `rep movsb` and non-temporal stores measured slower for every frame size.
#![allow(unsafe_code, reason = "vector copies over guest memory")]

use core::arch::asm;
use std::sync::atomic::{AtomicU8, Ordering};

const UNKNOWN: u8 = 0;
const SSE2: u8 = 1;
const AVX2: u8 = 2;
const AVX512: u8 = 3;
static WIDTH: AtomicU8 = AtomicU8::new(UNKNOWN);

#[cold]
fn detect() -> u8 {
    let width = if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("bmi2") {
        AVX512
    } else if is_x86_feature_detected!("avx2") {
        AVX2
    } else {
        SSE2
    };
    WIDTH.store(width, Ordering::Relaxed);
    width
}

/// Copies `len` bytes. Source and destination do not overlap (they may be the same guest's only by its own doing, and
/// then only its own bytes suffer).
///
/// # Safety
/// `src` has `len` readable and `dst` `len` writable bytes in live mappings or buffers of ours.
#[inline]
pub unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    let mut width = WIDTH.load(Ordering::Relaxed);
    if width == UNKNOWN {
        width = detect();
    }
    match width {
        // SAFETY: the caller's ranges; CPUID said AVX-512BW and BMI2.
        AVX512 => unsafe { copy_avx512(dst, src, len) },
        // SAFETY: the caller's ranges; CPUID said AVX2.
        AVX2 => unsafe { copy_avx2(dst, src, len) },
        // SAFETY: the caller's ranges; SSE2 is the baseline.
        _ => unsafe { copy_sse2(dst, src, len) },
    }
}

/// Copies exactly 64 bytes: the head of a frame.
///
/// # Safety
/// As [`copy`] with `len` 64.
#[inline]
pub unsafe fn copy64(dst: *mut u8, src: *const u8) {
    // SAFETY: four 16-byte moves inside the caller's 64 bytes.
    unsafe {
        asm!(
            "movups {a}, [{src}]", "movups {b}, [{src} + 16]", "movups {c}, [{src} + 32]", "movups {d}, [{src} + 48]",
            "movups [{dst}], {a}", "movups [{dst} + 16], {b}", "movups [{dst} + 32], {c}", "movups [{dst} + 48], {d}",
            src = in(reg) src, dst = in(reg) dst,
            a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
            options(nostack, preserves_flags)
        );
    }
}

#[inline]
unsafe fn copy_avx512(dst: *mut u8, src: *const u8, len: usize) {
    // Long copies begin with what is missing to a whole line of the destination: a store across two lines costs two.
    // Registers 16 and up: using them never makes later SSE code pay for a dirty upper half. The baseline build cannot
    // use them itself, hence they need no clobber.
    // SAFETY: whole steps of 64 and 256 bytes stay inside `len`; the masked moves at both ends have exactly the bytes
    // that are missing to a line, and that are left. Each byte is read once.
    unsafe {
        asm!(
            "cmp {len}, 256",
            "jb 5f",
            "mov {n}, {dst}",
            "neg {n}",
            "and {n}, 63",
            "jz 2f",
            "mov {mask}, -1",
            "bzhi {mask}, {mask}, {n}",
            "kmovq k1, {mask}",
            "vmovdqu8 zmm16{{k1}}{{z}}, [{src}]",
            "vmovdqu8 [{dst}]{{k1}}, zmm16",
            "add {src}, {n}",
            "add {dst}, {n}",
            "sub {len}, {n}",
            "2:",
            "sub {len}, 256",
            "jb 4f",
            "3:",
            "vmovdqu64 zmm16, [{src}]",
            "vmovdqu64 zmm17, [{src} + 64]",
            "vmovdqu64 zmm18, [{src} + 128]",
            "vmovdqu64 zmm19, [{src} + 192]",
            "vmovdqu64 [{dst}], zmm16",
            "vmovdqu64 [{dst} + 64], zmm17",
            "vmovdqu64 [{dst} + 128], zmm18",
            "vmovdqu64 [{dst} + 192], zmm19",
            "add {src}, 256",
            "add {dst}, 256",
            "sub {len}, 256",
            "jae 3b",
            "4:",
            "add {len}, 256",
            "5:",
            "sub {len}, 64",
            "jb 7f",
            "6:",
            "vmovdqu64 zmm16, [{src}]",
            "vmovdqu64 [{dst}], zmm16",
            "add {src}, 64",
            "add {dst}, 64",
            "sub {len}, 64",
            "jae 6b",
            "7:",
            "add {len}, 64",
            "jz 8f",
            "mov {mask}, -1",
            "bzhi {mask}, {mask}, {len}",
            "kmovq k1, {mask}",
            "vmovdqu8 zmm16{{k1}}{{z}}, [{src}]",
            "vmovdqu8 [{dst}]{{k1}}, zmm16",
            "8:",
            src = inout(reg) src => _, dst = inout(reg) dst => _, len = inout(reg) len => _, mask = out(reg) _,
            n = out(reg) _,
            options(nostack)
        );
    }
}

#[cfg(target_feature = "avx512f")]
compile_error!("build for the x86-64 baseline: the copies choose AVX-512 by themselves, and use registers it hides");

#[inline]
unsafe fn copy_avx2(dst: *mut u8, src: *const u8, len: usize) {
    let blocks = len / 64 * 64;
    if blocks > 0 {
        // SAFETY: whole 64-byte steps stay inside `len`.
        unsafe {
            asm!(
                "2:",
                "vmovdqu ymm0, [{src}]",
                "vmovdqu ymm1, [{src} + 32]",
                "vmovdqu [{dst}], ymm0",
                "vmovdqu [{dst} + 32], ymm1",
                "add {src}, 64",
                "add {dst}, 64",
                "sub {n}, 64",
                "jnz 2b",
                "vzeroupper",
                src = inout(reg) src => _, dst = inout(reg) dst => _, n = inout(reg) blocks => _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nostack)
            );
        }
    }
    // SAFETY: what is left, below 64 bytes, of the caller's ranges.
    unsafe { copy_sse2(dst.wrapping_add(blocks), src.wrapping_add(blocks), len - blocks) };
}

#[inline]
unsafe fn copy_sse2(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: 16-byte steps, then 8, 4, 2, 1, each taken only while that many bytes are left.
    unsafe {
        asm!(
            "sub {n}, 16",
            "jb 3f",
            "2:",
            "movups {v}, [{src}]",
            "movups [{dst}], {v}",
            "add {src}, 16",
            "add {dst}, 16",
            "sub {n}, 16",
            "jae 2b",
            "3:",
            "test {n:e}, 8", "jz 4f", "mov {t}, [{src}]", "mov [{dst}], {t}", "add {src}, 8", "add {dst}, 8",
            "4:",
            "test {n:e}, 4", "jz 5f", "mov {t:e}, [{src}]", "mov [{dst}], {t:e}", "add {src}, 4", "add {dst}, 4",
            "5:",
            "test {n:e}, 2", "jz 6f", "mov {t:x}, [{src}]", "mov [{dst}], {t:x}", "add {src}, 2", "add {dst}, 2",
            "6:",
            "test {n:e}, 1", "jz 7f", "mov {t:l}, [{src}]", "mov [{dst}], {t:l}",
            "7:",
            src = inout(reg) src => _, dst = inout(reg) dst => _, n = inout(reg) len => _,
            t = out(reg) _, v = out(xmm_reg) _,
            options(nostack)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One way of copying.
    type Way = unsafe fn(*mut u8, *const u8, usize);

    fn ways() -> Vec<(&'static str, Way)> {
        let mut ways: Vec<(&'static str, Way)> = vec![("sse2", copy_sse2), ("chosen", copy)];
        if is_x86_feature_detected!("avx2") {
            ways.push(("avx2", copy_avx2));
        }
        if is_x86_feature_detected!("avx512bw") {
            ways.push(("avx512", copy_avx512));
        }
        ways
    }

    proptest! {
        #[test]
        fn every_width_copies_exactly_the_bytes_asked_for(
            bytes in proptest::collection::vec(any::<u8>(), 0..1400), shift in 0usize..64,
        ) {
            for (name, way) in ways() {
                let mut out = vec![0xa5_u8; bytes.len() + 128];
                // SAFETY: `out` has room for `shift` + the bytes and a margin.
                unsafe { way(out.as_mut_ptr().wrapping_add(shift), bytes.as_ptr(), bytes.len()) };
                prop_assert_eq!(&out[shift..shift + bytes.len()], &bytes[..], "{}", name);
                prop_assert!(out[..shift].iter().chain(&out[shift + bytes.len()..]).all(|&b| b == 0xa5), "{}", name);
            }
        }
    }

    #[test]
    fn sixty_four_bytes_are_sixty_four_bytes() {
        let src: Vec<u8> = (0..80).collect();
        let mut dst = [0_u8; 80];
        // SAFETY: both have 64 bytes from 8 on.
        unsafe { copy64(dst.as_mut_ptr().wrapping_add(8), src.as_ptr().wrapping_add(3)) };
        assert_eq!(&dst[8..72], &src[3..67]);
        assert!(dst[..8].iter().chain(&dst[72..]).all(|&b| b == 0));
    }
}
