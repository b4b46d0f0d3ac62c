//! Products of integers by definition: which integers the operands become, in the very steps of
//! f32 that decide it, as the numbers in f64 whose product it then is.

use crate::dropout::Noise;
use crate::product::{Rounding, Side};

/// Rows of x [rows, cols], each column with its factor, as integers times a scale of the row.
pub struct Quantised {
    /// The integers, row by row.
    pub codes: Vec<f64>,
    /// Of each row.
    pub scales: Vec<f64>,
}

/// Quantises the rows of x.
pub fn quantise(x: &[f32], factors: &[f32], rounding: Rounding) -> Quantised {
    let cols = factors.len().max(1);
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for (row, x) in x.chunks_exact(cols).enumerate() {
        let x: Vec<f32> = x
            .iter()
            .zip(factors)
            .map(|(x, factor)| x * factor)
            .collect();
        let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let (scale, inverse) = match largest < 1e-30 {
            true => (0.0, 0.0),
            false => (largest / 127.0, 127.0 / largest),
        };
        let poison: f32 = x.iter().map(|x| x * 0.0).sum();
        scales.push(f64::from(scale + poison));
        for (kk, x) in x.iter().enumerate() {
            let noise = match rounding {
                Rounding::Nearest => 0.0,
                Rounding::Stochastic(key) => {
                    let first = row * cols.next_multiple_of(Noise::GROUP);
                    Noise::new(key).number((first + kk) as u64)
                }
            };
            let code = (x * inverse + noise).clamp(-127.0, 127.0);
            codes.push(f64::from(code.round_ties_even()));
        }
    }
    Quantised { codes, scales }
}

/// The rows of a weight [rows, cols] as int8 keeps them.
pub fn int8_weight(w: &[f32], cols: usize) -> Vec<f64> {
    let Quantised { codes, scales } = quantise(w, &vec![1.0; cols], Rounding::Nearest);
    let scale = |(i, code): (usize, f64)| scales[i / cols] * code;
    codes.into_iter().enumerate().map(scale).collect()
}

/// The second operand of a product of integers.
pub struct IntegerWeight<'a> {
    /// W [rows, cols], as [`int8_weight`] gives it.
    pub values: &'a [f64],
    /// [rows, cols].
    pub shape: [usize; 2],
    /// Whether it is W or Wᵀ.
    pub side: Side,
    /// Columns of the other operand that stay as they are.
    pub outliers: &'a [u32],
    /// Of the other operand.
    pub rounding: Rounding,
}

/// a [m, k] and b [n, k] whose product a·bᵀ is that of the integers and of the outliers beside.
pub fn integer_operands(a: &[f32], weight: &IntegerWeight) -> [Vec<f64>; 2] {
    let [rows, cols] = weight.shape;
    let row = |i: usize| &weight.values[i * cols..][..cols];
    let largest = |i: usize| row(i).iter().fold(0.0f64, |max, v| max.max(v.abs()));
    // The row's largest magnitude is 127 times its scale.
    let scales: Vec<f64> = (0..rows)
        .map(|i| f64::from((largest(i) / 127.0) as f32))
        .collect();
    let (n, k) = match weight.side {
        Side::Straight => (rows, cols),
        Side::Transposed => (cols, rows),
    };
    let is_outlier = |kk: usize| weight.outliers.contains(&(kk as u32));
    let factor = |kk: usize| match (is_outlier(kk), weight.side) {
        (true, _) => 0.0,
        (false, Side::Straight) => 1.0,
        (false, Side::Transposed) => scales[kk] as f32,
    };
    let factors: Vec<f32> = (0..k).map(factor).collect();
    let quantised = quantise(a, &factors, weight.rounding);
    let of_a = |i: usize| match is_outlier(i % k) {
        true => f64::from(a[i]),
        false => quantised.scales[i / k] * quantised.codes[i],
    };
    let of_b = |i: usize| {
        let (j, kk) = (i / k, i % k);
        match weight.side {
            Side::Straight => row(j)[kk],
            Side::Transposed if is_outlier(kk) => row(kk)[j],
            // The scale went to the other operand.
            Side::Transposed if scales[kk] == 0.0 => 0.0,
            Side::Transposed => (row(kk)[j] / scales[kk]).round(),
        }
    };
    [
        (0..a.len()).map(of_a).collect(),
        (0..n * k).map(of_b).collect(),
    ]
}
