//! The integer register tile: some rows of integers against one panel. Sums are exact, so that
//! every instruction set gives the same bits.
//!
//! A panel holds integers with 128 added, which are unsigned. `vpdpbusd` takes them as they are:
//! its sums start at -128 times the sum of the row. Where both operands are signed, 128 is taken
//! off in registers.

use crate::isa::Isa;

use super::panels::PANEL;
use super::strips::MAX_ROWS;

/// The operands of one tile. Distances are in words of four bytes, those of c in values.
#[derive(Clone, Copy)]
pub(super) struct IntegerTile {
    /// Row i, group g at `a + i * a_row + g`: four signed integers, none below -127.
    pub a: *const u32,
    pub a_row: usize,
    /// One panel: group g, column j at `b + g * PANEL + j`: four integers with 128 added.
    pub b: *const u32,
    /// Groups of four of the depth.
    pub groups: usize,
    /// Rows, at most [`MAX_ROWS`].
    pub rows: usize,
    /// The sum of each row's integers.
    pub row_sums: [i32; MAX_ROWS],
    /// Factor of each row.
    pub row_scales: [f32; MAX_ROWS],
    /// Factor of each of [`PANEL`] columns, or null.
    pub column_scales: *const f32,
    /// Element (i, j) at `c + i * c_row + j`, with room for a whole panel's columns.
    pub c: *mut f32,
    pub c_row: usize,
    /// Whether c is added to.
    pub accumulate: bool,
}

/// What multiplies integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IntegerUnit {
    Scalar,
    /// `vpmaddubsw` of magnitudes and signed values: no pair of products leaves i16.
    Avx2,
    /// `vpdpbusd` on eight sums.
    AvxVnni,
    /// `vpdpbusd` on sixteen.
    Avx512Vnni,
    /// `smull` and `sadalp`.
    Neon,
    /// `sdot`.
    NeonDot,
}

impl IntegerUnit {
    #[cfg(test)]
    const ALL: [IntegerUnit; 6] = [
        IntegerUnit::Scalar,
        IntegerUnit::Avx2,
        IntegerUnit::AvxVnni,
        IntegerUnit::Avx512Vnni,
        IntegerUnit::Neon,
        IntegerUnit::NeonDot,
    ];

    /// The fastest one beside an instruction set that this machine has.
    pub(super) fn of(isa: Isa) -> Self {
        let candidates: &[IntegerUnit] = match isa {
            Isa::Scalar => &[],
            Isa::Neon => &[IntegerUnit::NeonDot, IntegerUnit::Neon],
            Isa::Avx2 => &[IntegerUnit::AvxVnni, IntegerUnit::Avx2],
            Isa::Avx512 | Isa::Avx512Bf16 => &[
                IntegerUnit::Avx512Vnni,
                IntegerUnit::AvxVnni,
                IntegerUnit::Avx2,
            ],
        };
        let found = candidates.iter().find(|unit| unit.is_available());
        *found.unwrap_or(&IntegerUnit::Scalar)
    }

    fn is_available(self) -> bool {
        match self {
            IntegerUnit::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            IntegerUnit::Avx2 => Isa::Avx2.is_available(),
            #[cfg(target_arch = "x86_64")]
            IntegerUnit::AvxVnni => is_x86_feature_detected!("avxvnni") && Isa::Avx2.is_available(),
            #[cfg(target_arch = "x86_64")]
            IntegerUnit::Avx512Vnni => {
                is_x86_feature_detected!("avx512vnni") && Isa::Avx512.is_available()
            }
            #[cfg(target_arch = "aarch64")]
            IntegerUnit::Neon => true,
            #[cfg(target_arch = "aarch64")]
            IntegerUnit::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(not(target_arch = "x86_64"))]
            IntegerUnit::Avx2 | IntegerUnit::AvxVnni | IntegerUnit::Avx512Vnni => false,
            #[cfg(not(target_arch = "aarch64"))]
            IntegerUnit::Neon | IntegerUnit::NeonDot => false,
        }
    }

    /// c (=|+=) sum · the column's factor · the row's.
    ///
    /// # Safety
    /// The machine has the unit; a covers rows x groups, b a whole panel, c the rows of a panel,
    /// and there are at most [`MAX_ROWS`].
    #[inline(always)]
    pub(super) unsafe fn run(self, tile: &IntegerTile) {
        debug_assert!(tile.rows <= MAX_ROWS);
        // SAFETY: the caller's contract.
        unsafe {
            match self {
                IntegerUnit::Scalar => scalar(tile),
                #[cfg(target_arch = "x86_64")]
                IntegerUnit::Avx2 => x86::avx2(tile),
                #[cfg(target_arch = "x86_64")]
                IntegerUnit::AvxVnni => x86::avx_vnni(tile),
                #[cfg(target_arch = "x86_64")]
                IntegerUnit::Avx512Vnni => x86::avx512_vnni(tile),
                #[cfg(target_arch = "aarch64")]
                IntegerUnit::Neon => arm::neon(tile),
                #[cfg(target_arch = "aarch64")]
                IntegerUnit::NeonDot => arm::neon_dot(tile),
                #[cfg(not(target_arch = "x86_64"))]
                IntegerUnit::Avx2 | IntegerUnit::AvxVnni | IntegerUnit::Avx512Vnni => {
                    unreachable!("the machine has the unit")
                }
                #[cfg(not(target_arch = "aarch64"))]
                IntegerUnit::Neon | IntegerUnit::NeonDot => {
                    unreachable!("the machine has the unit")
                }
            }
        }
    }
}

impl IntegerTile {
    /// No operands.
    pub(super) const NONE: Self = Self {
        a: std::ptr::null(),
        a_row: 0,
        b: std::ptr::null(),
        groups: 0,
        rows: 0,
        row_sums: [0; MAX_ROWS],
        row_scales: [0.0; MAX_ROWS],
        column_scales: std::ptr::null(),
        c: std::ptr::null_mut(),
        c_row: 0,
        accumulate: false,
    };

    /// Takes the sums of neighbouring columns of row `i`, from `j` on.
    ///
    /// # Safety
    /// As [`IntegerUnit::run`].
    #[inline(always)]
    unsafe fn store(&self, i: usize, j: usize, sums: &[i32]) {
        for (at, &sum) in sums.iter().enumerate() {
            // SAFETY: the caller's contract.
            unsafe {
                let c = self.c.add(i * self.c_row + j + at);
                let mut v = sum as f32;
                if !self.column_scales.is_null() {
                    v *= *self.column_scales.add(j + at);
                }
                v *= self.row_scales[i];
                *c = if self.accumulate { *c + v } else { v };
            }
        }
    }
}

/// # Safety
/// As [`IntegerUnit::run`].
unsafe fn scalar(tile: &IntegerTile) {
    for i in 0..tile.rows {
        let mut sums = [0i32; PANEL];
        for g in 0..tile.groups {
            // SAFETY: the caller's contract.
            let a = unsafe { tile.a.add(i * tile.a_row + g).read() }.to_ne_bytes();
            for (j, sum) in sums.iter_mut().enumerate() {
                // SAFETY: as above.
                let b = unsafe { tile.b.add(g * PANEL + j).read() }.to_ne_bytes();
                for (a, b) in a.into_iter().zip(b) {
                    *sum = sum.wrapping_add(i32::from(a as i8) * (i32::from(b) - 128));
                }
            }
        }
        // SAFETY: as above.
        unsafe { tile.store(i, 0, &sums) };
    }
}

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
mod arm;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::philox4x32_10;

    /// Integers from -127 to 127, both ends among them.
    fn integers(len: usize, seed: u32) -> Vec<i8> {
        let word = |i: usize| philox4x32_10([i as u32, seed, 0, 0], [1, 2])[0];
        let value = |i: usize| match word(i) % 300 {
            value @ 0..=254 => value as i16 - 127,
            large => [-127, 127][large as usize % 2],
        };
        (0..len).map(|i| value(i) as i8).collect()
    }

    fn words(bytes: impl Iterator<Item = u8>) -> Vec<u32> {
        let bytes: Vec<u8> = bytes.collect();
        let (words, _) = bytes.as_chunks::<4>();
        words.iter().map(|word| u32::from_ne_bytes(*word)).collect()
    }

    /// c of a unit, and c by definition.
    fn run(unit: IntegerUnit, rows: usize, groups: usize, accumulate: bool) -> [Vec<f32>; 2] {
        let k = 4 * groups;
        let (a, b) = (integers(rows * k, 1), integers(PANEL * k, 2));
        let panel = |g: usize| (0..4 * PANEL).map(move |at| (at / 4, 4 * g + at % 4));
        let panel = (0..groups).flat_map(panel).map(|(j, kk)| b[j * k + kk]);
        let row = |i: usize| &a[i * k..][..k];
        let sum = |i: usize| row(i).iter().map(|&a| i32::from(a)).sum();
        let (a_words, b_words) = (
            words(a.iter().map(|&a| a as u8)),
            words(panel.map(|b| (i16::from(b) + 128) as u8)),
        );
        let column_scales: Vec<f32> = (0..PANEL).map(|j| 0.3 + j as f32 / 7.0).collect();
        let row_scales: [f32; MAX_ROWS] = std::array::from_fn(|i| 0.01 + i as f32 / 3.0);
        let start: Vec<f32> = (0..rows * PANEL).map(|i| i as f32 / 9.0).collect();
        let mut c = start.clone();
        let tile = IntegerTile {
            a: a_words.as_ptr(),
            a_row: groups,
            b: b_words.as_ptr(),
            groups,
            rows,
            row_sums: std::array::from_fn(|i| if i < rows { sum(i) } else { 0 }),
            row_scales,
            column_scales: column_scales.as_ptr(),
            c: c.as_mut_ptr(),
            c_row: PANEL,
            accumulate,
        };
        // SAFETY: the operands have the shapes that the tile says, and the unit is available.
        unsafe { unit.run(&tile) };
        let element = |at: usize| {
            let (i, j) = (at / PANEL, at % PANEL);
            let products = row(i).iter().zip(&b[j * k..][..k]);
            let sum: i32 = products.map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
            let v = sum as f32 * column_scales[j] * row_scales[i];
            if accumulate { start[at] + v } else { v }
        };
        [c, (0..rows * PANEL).map(element).collect()]
    }

    #[test]
    fn every_unit_of_this_machine_gives_the_exact_sums() {
        for unit in IntegerUnit::ALL {
            if !unit.is_available() {
                println!("NOT TESTED: this processor has no {unit:?}");
                continue;
            }
            for rows in 1..=MAX_ROWS {
                for groups in [0, 1, 2, 3, 17, 260] {
                    let [found, wanted] = run(unit, rows, groups, groups % 2 == 1);
                    assert_eq!(found, wanted, "{unit:?} {rows} rows, {groups} groups");
                }
            }
        }
    }
}
