//! Amounts of resources, in billionths.

use std::cmp::Ordering;

use super::text;
use crate::error::Error;
use crate::function::Row;
use crate::opaque::Opaque;
use crate::value::Value;

/// An amount. Amounts beyond some 10²⁹ saturate.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
}

const NANOS: i128 = 1_000_000_000;

type Pair = fn(Quantity, Quantity) -> Value<'static>;

pub(crate) const ROWS: &[Row] = &[
    ("quantity", "string_to_quantity", "(string) kubernetes.Quantity", |_, args| {
        parse(text(args, 0)?).map(value).map_err(Error::new)
    }),
    ("isQuantity", "is_quantity_string", "(string) bool", |_, args| {
        Ok(Value::Bool(parse(text(args, 0)?).is_ok()))
    }),
    ("sign", "quantity_sign", "(kubernetes.Quantity) int", |_, args| {
        Ok(Value::Int(of(args, 0)?.nanos.signum() as i64))
    }),
    (
        "isGreaterThan",
        "quantity_is_greater_than",
        ".(kubernetes.Quantity, kubernetes.Quantity) bool",
        |_, args| pair(args, |a, b| Value::Bool(a.compare(&b).is_gt())),
    ),
    ("isLessThan", "quantity_is_less_than", ".(kubernetes.Quantity, kubernetes.Quantity) bool", |_, args| {
        pair(args, |a, b| Value::Bool(a.compare(&b).is_lt()))
    }),
    ("compareTo", "quantity_compare_to", ".(kubernetes.Quantity, kubernetes.Quantity) int", |_, args| {
        pair(args, |a, b| Value::Int(a.compare(&b) as i64))
    }),
    ("asApproximateFloat", "quantity_get_float", ".(kubernetes.Quantity) double", |_, args| {
        Ok(Value::Double(of(args, 0)?.nanos as f64 / NANOS as f64))
    }),
    ("asInteger", "quantity_get_int", ".(kubernetes.Quantity) int", |_, args| {
        let whole = of(args, 0)?.whole();
        whole.map(Value::Int).ok_or_else(|| Error::new("cannot convert value to integer"))
    }),
    ("isInteger", "quantity_is_integer", ".(kubernetes.Quantity) bool", |_, args| {
        Ok(Value::Bool(of(args, 0)?.whole().is_some()))
    }),
    ("add", "quantity_add", ".(kubernetes.Quantity, kubernetes.Quantity) kubernetes.Quantity", |_, args| {
        pair(args, |a, b| value(Quantity { nanos: a.nanos.saturating_add(b.nanos) }))
    }),
    ("add", "quantity_add_int", ".(kubernetes.Quantity, int) kubernetes.Quantity", |_, args| {
        pair(args, |a, b| value(Quantity { nanos: a.nanos.saturating_add(b.nanos) }))
    }),
    ("sub", "quantity_sub", ".(kubernetes.Quantity, kubernetes.Quantity) kubernetes.Quantity", |_, args| {
        pair(args, |a, b| value(Quantity { nanos: a.nanos.saturating_sub(b.nanos) }))
    }),
    ("sub", "quantity_sub_int", ".(kubernetes.Quantity, int) kubernetes.Quantity", |_, args| {
        pair(args, |a, b| value(Quantity { nanos: a.nanos.saturating_sub(b.nanos) }))
    }),
];

impl Quantity {
    pub(crate) fn compare(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }

    fn whole(self) -> Option<i64> {
        (self.nanos % NANOS == 0).then(|| i64::try_from(self.nanos / NANOS).ok())?
    }
}

fn value<'a>(quantity: Quantity) -> Value<'a> {
    Value::Opaque(Opaque::Quantity(quantity))
}

fn of(args: &[Value<'_>], index: usize) -> Result<Quantity, Error> {
    match args.get(index) {
        Some(Value::Opaque(Opaque::Quantity(quantity))) => Ok(*quantity),
        Some(Value::Int(units)) => Ok(Quantity { nanos: i128::from(*units) * NANOS }),
        _ => Err(Error::no_such_overload()),
    }
}

fn pair<'a>(args: &[Value<'a>], f: Pair) -> Result<Value<'a>, Error> {
    Ok(f(of(args, 0)?, of(args, 1)?))
}

fn parse(text: &str) -> Result<Quantity, &'static str> {
    const FORMAT: &str =
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
    const SUFFIX: &str = "unable to parse quantity's suffix";
    let (negative, unsigned) = match text.strip_prefix(['+', '-']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    let digits = unsigned.bytes().take_while(|c| c.is_ascii_digit() || *c == b'.').count();
    let (number, suffix) = unsigned.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let letters = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let exponent = letters.strip_prefix(['+', '-']).unwrap_or(letters);
    if whole.len() + fraction.len() == 0
        || fraction.contains('.')
        || !exponent.bytes().all(|c| c.is_ascii_digit())
    {
        return Err(FORMAT);
    }
    let (ten, two) = match suffix {
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "" => (0, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or(SUFFIX)?;
            (exponent.parse::<i32>().map_err(|_| SUFFIX)?, 0)
        }
    };
    // Digits in billionths, rounded up; then the powers of two, which only grow it.
    let point =
        i64::try_from(whole.len()).unwrap_or(i64::MAX).saturating_add(i64::from(ten)).saturating_add(9);
    let scale: i128 = 1 << two;
    let (mut nanos, mut rest, mut below) = (0_i128, 0_i128, 1_i128);
    for (at, digit) in whole.bytes().chain(fraction.bytes()).enumerate() {
        let digit = i128::from(digit - b'0');
        if (at as i64) < point {
            nanos = nanos.saturating_mul(10).saturating_add(digit);
        } else if below < 1_000_000_000_000_000_000 {
            rest = rest * 10 + digit;
            below *= 10;
        } else if digit != 0 {
            rest |= 1;
        }
    }
    let missing = point - (whole.len() + fraction.len()) as i64;
    for _ in 0..missing.clamp(0, 40) {
        nanos = nanos.saturating_mul(10);
    }
    let rest = rest * scale;
    let nanos = nanos.saturating_mul(scale).saturating_add(rest / below + i128::from(rest % below != 0));
    Ok(Quantity { nanos: if negative { -nanos } else { nanos } })
}
