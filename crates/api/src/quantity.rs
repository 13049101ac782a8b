//! Amounts of resources: `100m`, `1Gi`, `2e3`. Parsing, canonical text, comparison and arithmetic.
//! Upstream counterpart: `k8s.io/apimachinery/pkg/api/resource`.
//!
//! An amount is held in billionths (the finest step that upstream keeps) as 128 bits; amounts
//! beyond some 10²⁹ saturate, where upstream would go on with arbitrary precision.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use serde_json::Value;
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

const NANOS_PER_UNIT: i128 = 1_000_000_000;
const NANOS_PER_MILLI: i128 = 1_000_000;
/// Binary amounts are capped at the largest signed 64-bit number.
const BINARY_MAX_NANOS: i128 = i64::MAX as i128 * NANOS_PER_UNIT;

/// Which suffixes the canonical text uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// `Ki`, `Mi`, `Gi`, `Ti`, `Pi`, `Ei`.
    BinarySi,
    /// `n`, `u`, `m`, none, `k`, `M`, `G`, `T`, `P`, `E`.
    #[default]
    DecimalSi,
    /// `e3`, `e-3`.
    DecimalExponent,
}

/// An exact amount and the family of suffixes it was written with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSi };

    pub fn from_units(units: i64) -> Self {
        Quantity { nanos: i128::from(units) * NANOS_PER_UNIT, format: Format::DecimalSi }
    }

    pub fn from_millis(millis: i64) -> Self {
        Quantity { nanos: i128::from(millis) * NANOS_PER_MILLI, format: Format::DecimalSi }
    }

    /// Bytes, written with binary suffixes.
    pub fn from_bytes(bytes: i64) -> Self {
        Quantity { nanos: i128::from(bytes) * NANOS_PER_UNIT, format: Format::BinarySi }
    }

    /// A JSON string or number, as the API accepts both.
    pub fn from_value(value: &Value) -> Result<Self, ParseError> {
        match value {
            Value::String(s) => s.parse(),
            Value::Number(n) => n.to_string().parse(),
            Value::Null => Ok(Quantity::ZERO),
            _ => Err(ParseError::Format),
        }
    }

    /// Of a validated object; what does not parse counts as zero.
    pub fn of(text: &Text) -> Self {
        text.0.parse().unwrap_or_default()
    }

    pub fn format(self) -> Format {
        self.format
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// -1, 0 or 1.
    pub fn sign(self) -> i32 {
        self.nanos.signum() as i32
    }

    /// Whole units, rounded away from zero; saturates.
    pub fn units(self) -> i64 {
        saturate(divide_away_from_zero(self.nanos, NANOS_PER_UNIT))
    }

    /// Thousandths, rounded away from zero; saturates.
    pub fn millis(self) -> i64 {
        saturate(divide_away_from_zero(self.nanos, NANOS_PER_MILLI))
    }

    /// For ratios; loses what a double cannot hold.
    pub fn as_f64(self) -> f64 {
        self.nanos as f64 / NANOS_PER_UNIT as f64
    }

    pub fn is_whole(self) -> bool {
        self.nanos % NANOS_PER_UNIT == 0
    }

    /// Whether the amount is a multiple of one thousandth.
    pub fn is_whole_millis(self) -> bool {
        self.nanos % NANOS_PER_MILLI == 0
    }

    /// The canonical text in the API's type.
    pub fn to_text(self) -> Text {
        Text(self.to_string())
    }

    /// A zero takes over the other's format, as upstream's sums do.
    fn combined_format(self, other: Self) -> Format {
        if self.nanos == 0 { other.format } else { self.format }
    }
}

fn saturate(n: i128) -> i64 {
    n.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

fn divide_away_from_zero(n: i128, by: i128) -> i128 {
    n / by + if n % by == 0 { 0 } else { n.signum() }
}

impl std::ops::Add for Quantity {
    type Output = Quantity;
    fn add(self, other: Self) -> Self {
        Quantity { nanos: self.nanos.saturating_add(other.nanos), format: self.combined_format(other) }
    }
}

impl std::ops::Sub for Quantity {
    type Output = Quantity;
    fn sub(self, other: Self) -> Self {
        Quantity { nanos: self.nanos.saturating_sub(other.nanos), format: self.combined_format(other) }
    }
}

impl std::ops::AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::ops::SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl std::ops::Neg for Quantity {
    type Output = Quantity;
    fn neg(self) -> Self {
        Quantity { nanos: self.nanos.saturating_neg(), format: self.format }
    }
}

/// By amount: `1Gi` equals `1073741824`.
impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// What a suffix multiplies by.
enum Scale {
    Binary(u32),
    Decimal(i64, Format),
}

fn scale_of(suffix: &str) -> Option<Scale> {
    let decimal = |exponent| Some(Scale::Decimal(exponent, Format::DecimalSi));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => Some(Scale::Binary(10)),
        "Mi" => Some(Scale::Binary(20)),
        "Gi" => Some(Scale::Binary(30)),
        "Ti" => Some(Scale::Binary(40)),
        "Pi" => Some(Scale::Binary(50)),
        "Ei" => Some(Scale::Binary(60)),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            Some(Scale::Decimal(exponent.parse::<i32>().ok()?.into(), Format::DecimalExponent))
        }
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            None => return Err(ParseError::Format),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        let end = |s: &str| s.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(s.len());
        let (whole, rest) = unsigned.split_at(end(unsigned));
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(rest) => rest.split_at(end(rest)),
            None => ("", rest),
        };
        if whole.is_empty() && fraction.is_empty() || !is_suffix(suffix) {
            return Err(ParseError::Format);
        }
        let (mut nanos, mut format) = match scale_of(suffix).ok_or(ParseError::Suffix)? {
            Scale::Binary(shift) => (binary_nanos(whole, fraction, shift), Format::BinarySi),
            Scale::Decimal(exponent, format) => (decimal_nanos(whole, fraction, exponent), format),
        };
        if format == Format::BinarySi {
            nanos = nanos.min(BINARY_MAX_NANOS);
            // A binary suffix cannot write a fraction of a unit.
            if nanos > 0 && nanos < NANOS_PER_UNIT {
                format = Format::DecimalSi;
            }
        }
        Ok(Quantity { nanos: if negative { -nanos } else { nanos }, format })
    }
}

/// Letters, then an optional signed number.
fn is_suffix(suffix: &str) -> bool {
    let rest = suffix.trim_start_matches(['e', 'E', 'i', 'n', 'u', 'm', 'k', 'K', 'M', 'G', 'T', 'P']);
    let digits = rest.strip_prefix(['+', '-']).unwrap_or(rest);
    digits.bytes().all(|b| b.is_ascii_digit())
}

/// `whole.fraction × 10^exponent` in billionths, rounded up.
fn decimal_nanos(whole: &str, fraction: &str, exponent: i64) -> i128 {
    let fraction = fraction.trim_end_matches('0');
    let digits = || whole.bytes().chain(fraction.bytes()).map(|b| i128::from(b - b'0'));
    // The position of the point, counted from the first digit, once all is in billionths.
    let point = whole.len() as i64 + exponent + 9;
    let (mut nanos, mut rounded) = (0i128, false);
    for (at, digit) in digits().enumerate() {
        if (at as i64) < point {
            nanos = nanos.saturating_mul(10).saturating_add(digit);
        } else {
            rounded |= digit != 0;
        }
    }
    if nanos != 0 {
        let missing = (point - (whole.len() + fraction.len()) as i64).clamp(0, 40);
        for _ in 0..missing {
            nanos = nanos.saturating_mul(10);
        }
    }
    nanos.saturating_add(i128::from(rounded))
}

/// `whole.fraction × 2^shift` in billionths, rounded up.
fn binary_nanos(whole: &str, fraction: &str, shift: u32) -> i128 {
    // Eighteen digits of fraction keep the product below 2^128; a non-zero rest rounds up.
    let (fraction, rest) = fraction.split_at(fraction.len().min(18));
    let number =
        |s: &str| s.bytes().fold(0i128, |n, b| n.saturating_mul(10).saturating_add(i128::from(b - b'0')));
    let units = number(whole).saturating_mul(1 << shift).saturating_mul(NANOS_PER_UNIT);
    let divisor = 10i128.pow(fraction.len() as u32);
    let product = number(fraction) << shift;
    let (quotient, remainder) = (product / divisor, product % divisor * NANOS_PER_UNIT);
    let nanos = quotient * NANOS_PER_UNIT
        + remainder / divisor
        + i128::from(remainder % divisor != 0 || rest.bytes().any(|b| b != b'0'));
    units.saturating_add(nanos)
}

/// The canonical text: no fraction, the largest suffix that loses nothing.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let below_a_kibi = self.nanos.abs() < 1024 * NANOS_PER_UNIT;
        if self.format == Format::BinarySi && !below_a_kibi && self.is_whole() {
            let (mut number, mut suffix) = (self.nanos / NANOS_PER_UNIT, 0);
            while number % 1024 == 0 && suffix < 6 {
                number /= 1024;
                suffix += 1;
            }
            return write!(f, "{number}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][suffix]);
        }
        let (mut number, mut exponent) = (self.nanos, -9);
        let exponent_max = if self.format == Format::DecimalExponent { i32::MAX } else { 18 };
        while number % 1000 == 0 && exponent < exponent_max {
            number /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { write!(f, "{number}") } else { write!(f, "{number}e{exponent}") };
        }
        let suffix = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][((exponent + 9) / 3) as usize];
        write!(f, "{number}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn q(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn canonical_text_is_upstreams() {
        for (input, expected) in [
            ("0", "0"),
            ("0n", "0"),
            ("0Ki", "0"),
            ("100m", "100m"),
            ("0.1", "100m"),
            ("1000m", "1"),
            ("1.5", "1500m"),
            ("1500", "1500"),
            ("1000", "1k"),
            ("1k", "1k"),
            ("1000k", "1M"),
            ("1Ki", "1Ki"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("0.5Ki", "512"),
            ("0.001Ki", "1024m"),
            ("0.0001Ki", "102400u"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("129M", "129M"),
            ("123Mi", "123Mi"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("1e-3", "1e-3"),
            ("1e0", "1"),
            ("12e1", "120"),
            ("1E", "1E"),
            ("8Ei", "9223372036854775807"),
            ("100Ei", "9223372036854775807"),
            ("-1Ki", "-1Ki"),
            ("-1", "-1"),
            ("+1", "1"),
            ("-0.5", "-500m"),
            ("0.0000000001", "1n"),
            ("-0.0000000001", "-1n"),
            ("1.0000000001", "1000000001n"),
            (".5", "500m"),
            ("5.", "5"),
            ("00100", "100"),
            ("1.10", "1100m"),
            ("1Ti", "1Ti"),
            ("1500Mi", "1500Mi"),
            ("10000000000000000000", "10E"),
        ] {
            assert_eq!(q(input).to_string(), expected, "{input}");
        }
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for bad in ["", "-", ".", "a", "1 ", " 1", "1.1.1", "--1", "+-3", "1e3e", "0x10", "1,000", "Ki"] {
            assert_eq!(bad.parse::<Quantity>(), Err(ParseError::Format), "{bad}");
        }
        for bad in ["1kk", "1mi", "1Kii", "1K", "1i", "1e", "1ee3", "1Ki3"] {
            let parsed = bad.parse::<Quantity>();
            if bad == "1e" {
                assert_eq!(parsed, Err(ParseError::Suffix), "{bad}");
            } else {
                assert!(parsed.is_err(), "{bad}");
            }
        }
    }

    #[test]
    fn numbers_round_away_from_zero() {
        assert_eq!((q("1m").units(), q("1500m").units(), q("-1500m").units()), (1, 2, -2));
        assert_eq!((q("1u").millis(), q("2").millis(), q("0.1").millis()), (1, 2000, 100));
        assert_eq!(q("1Gi").units(), 1 << 30);
        assert!(q("1Gi") == q("1073741824") && q("100m") < q("1") && q("-1") < q("0"));
    }

    #[test]
    fn sums_keep_the_first_format_unless_zero() {
        assert_eq!((q("1Gi") + q("1k")).to_string(), "1073742824");
        assert_eq!((q("1Gi") + q("1Mi")).to_string(), "1025Mi");
        assert_eq!((Quantity::ZERO + q("1Gi")).to_string(), "1Gi");
        assert_eq!((q("1") - q("1500m")).to_string(), "-500m");
    }

    #[test]
    fn json_numbers_are_quantities_too() {
        assert_eq!(Quantity::from_value(&serde_json::json!(2)).unwrap(), q("2"));
        assert_eq!(Quantity::from_value(&serde_json::json!(0.5)).unwrap(), q("500m"));
        assert!(Quantity::from_value(&serde_json::json!({})).is_err());
    }

    proptest! {
        #[test]
        fn canonical_text_is_a_fixed_point(text in "[+-]?[0-9]{1,12}(\\.[0-9]{0,12})?(n|u|m||k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e[0-9]|E-[0-9])") {
            let once = q(&text);
            let again = q(&once.to_string());
            prop_assert_eq!(once, again);
            prop_assert_eq!(once.to_string(), again.to_string());
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn arithmetic_is_exact(a in -1_000_000_000_000i64..1_000_000_000_000, b in -1_000_000_000_000i64..1_000_000_000_000) {
            let (x, y) = (Quantity::from_millis(a), Quantity::from_millis(b));
            prop_assert_eq!((x + y).millis(), a + b);
            prop_assert_eq!((x - y) + y, x);
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            prop_assert_eq!(-(-x), x);
        }
    }
}
