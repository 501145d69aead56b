//! `--set NAME=VALUE`: parameters, set before the canonical object is written.

use syrup_protocol::{Code, Failure, Result};

use super::checked::{Checked, Integer};

/// Sets each parameter. Values are integers (decimal, 0x hex) or true and false, and must
/// fit the parameter's type.
///
/// # Errors
/// [`Code::Usage`] naming the parameters there are.
pub(crate) fn set(policy: &mut Checked, params: &[(String, String)]) -> Result<()> {
    let known: Vec<&str> = policy.params.iter().map(|param| param.name.as_str()).collect();
    for (name, text) in params {
        let bad = |why: String| {
            Failure::new(Code::Usage, format!("--set {name}={text}: {why}")).advise(
                if known.is_empty() {
                    "this policy has no parameters".to_owned()
                } else {
                    format!("parameters of this policy: {}", known.join(", "))
                },
            )
        };
        let param = policy.params.iter().find(|param| param.name == *name);
        let param = param.ok_or_else(|| bad("the policy has no such parameter".to_owned()))?;
        let of = param.integer.ok_or_else(|| bad("it is not an integer".to_owned()))?;
        let value = encode(text, Range::of(of)).map_err(bad)?;
        policy.variables.rodata[param.at..][..param.bytes].copy_from_slice(&value);
    }
    Ok(())
}

/// What a parameter may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    bytes: usize,
    /// Smallest and largest value.
    low: i128,
    high: i128,
}

impl Range {
    const BOOL: Self = Self { bytes: 1, low: 0, high: 1 };

    fn of(integer: Integer) -> Self {
        match integer {
            Integer { bits: 8, bool: true, .. } => Self::BOOL,
            Integer { bits, signed, .. } => Self::integer(usize::from(bits) / 8, signed),
        }
    }

    fn integer(bytes: usize, signed: bool) -> Self {
        let bits = bytes * 8;
        let (low, high) = match signed {
            true => (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1),
            false => (0, (1i128 << bits) - 1),
        };
        Self { bytes, low, high }
    }
}

fn encode(text: &str, of: Range) -> std::result::Result<Vec<u8>, String> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let magnitude = |digits: &str, radix| match u64::from_str_radix(digits, radix) {
        // A sign would be taken, too.
        Ok(number) if digits.starts_with(|c: char| c.is_digit(radix)) => Ok(i128::from(number)),
        _ => Err("not a number: decimal, hexadecimal after 0x, true or false".to_owned()),
    };
    let value = match (text, digits.strip_prefix("0x")) {
        ("true", _) => 1,
        ("false", _) => 0,
        (_, Some(hex)) => sign * magnitude(hex, 16)?,
        _ => sign * magnitude(digits, 10)?,
    };
    let Range { bytes, low, high } = of;
    if !(low..=high).contains(&value) {
        return Err(format!("out of range {low}..={high}"));
    }
    Ok(value.to_le_bytes()[..bytes].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(text: &str, bytes: usize, signed: bool) -> std::result::Result<Vec<u8>, String> {
        super::encode(text, Range::integer(bytes, signed))
    }

    #[test]
    fn a_bool_is_0_or_1() {
        for (text, value) in [("true", 1), ("false", 0), ("1", 1), ("0x0", 0)] {
            assert_eq!(super::encode(text, Range::BOOL), Ok(vec![value]));
        }
        assert!(super::encode("2", Range::BOOL).unwrap_err().contains("0..=1"));
    }

    #[test]
    fn one_sign_in_front_and_none_further_in() {
        for text in ["--5", "0x-5", "-0x-5", "+5", "0x+5", "-+5", "-true", "0x", "-"] {
            assert!(encode(text, 4, true).is_err(), "{text}");
        }
    }

    #[test]
    fn values_must_fit_their_type() {
        assert_eq!(encode("5", 4, false), Ok(vec![5, 0, 0, 0]));
        assert_eq!(encode("0x10", 1, false), Ok(vec![16]));
        assert_eq!(encode("-1", 2, true), Ok(vec![255, 255]));
        assert_eq!(encode("18446744073709551615", 8, false), Ok(vec![255; 8]));
        assert_eq!(encode("true", 1, false), Ok(vec![1]));
        for (text, size, signed) in
            [("256", 1, false), ("-1", 4, false), ("128", 1, true), ("x", 4, false), ("", 4, false)]
        {
            assert!(encode(text, size, signed).is_err(), "{text}");
        }
    }

    #[test]
    fn the_last_values_that_fit_and_the_first_that_do_not() {
        for size in [1usize, 2, 4, 8] {
            let bits = size as u32 * 8;
            let ok = |text: i128, signed| encode(&text.to_string(), size, signed).is_ok();
            let top = (1i128 << bits) - 1;
            assert!(ok(top, false) && !ok(top + 1, false), "{size}");
            assert!(ok(0, false) && !ok(-1, false), "{size}");
            let (low, high) = (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1);
            assert!(ok(high, true) && !ok(high + 1, true), "{size}");
            assert!(ok(low, true) && !ok(low - 1, true), "{size}");
        }
        assert_eq!(encode("-128", 1, true), Ok(vec![0x80]));
        assert_eq!(encode("-0x10", 2, true), Ok(vec![0xf0, 0xff]));
        assert_eq!(encode("false", 2, false), Ok(vec![0, 0]));
        assert_eq!(encode("256", 1, false), Err("out of range 0..=255".to_owned()));
        assert_eq!(encode("128", 1, true), Err("out of range -128..=127".to_owned()));
    }

    #[test]
    fn a_parameter_is_set_by_its_name_and_type() {
        let source = "#include <syrup/packet.h>\nSYRUP_PARAM(__u16, SMALL, 3);\n\
            SYRUP_PARAM(__s32, SIGNED, 4);\nSYRUP_PARAM(_Bool, FLAG, 0);\n\
            struct two { int a, b; };\nconst volatile struct two PAIR = {1, 2};\n\
            const volatile __u32 *const volatile POINTER = 0;\n\
            __s32 schedule(void *s, void *e)\n{\n\
            \treturn FLAG ? SMALL : SIGNED + PAIR.a + (POINTER ? 1 : 0);\n}\n";
        let image = syrup_sdk::Compiler::find().unwrap().compile("p.c", source).unwrap().object;
        let policy = crate::policy::read::read("p.c", &image).unwrap();
        let set_one = |name: &str, value: &str| {
            let mut policy = policy.clone();
            set(&mut policy, &[(name.to_owned(), value.to_owned())]).map(|()| policy)
        };
        for (name, value, bytes) in [
            ("SMALL", "65535", &[0xff, 0xff][..]),
            ("SIGNED", "-2", &[0xfe, 0xff, 0xff, 0xff]),
            ("FLAG", "true", &[1]),
        ] {
            let changed = set_one(name, value).unwrap();
            let param = changed.params.iter().find(|param| param.name == name).unwrap();
            let range = param.at..param.at + param.bytes;
            assert_eq!(&changed.variables.rodata[range.clone()], bytes, "{name}");
            let mut back = changed.clone();
            let before = &policy.variables.rodata[range.clone()];
            back.variables.rodata[range].copy_from_slice(before);
            assert_eq!(back, policy, "{name}: nothing else changed");
        }
        let refused = |name: &str, value: &str| {
            let error = set_one(name, value).unwrap_err();
            assert_eq!(error.code, Code::Usage);
            assert!(error.message.starts_with(&format!("--set {name}={value}: ")), "{error}");
            error
        };
        assert!(refused("SMALL", "65536").message.contains("out of range 0..=65535"));
        assert!(refused("SMALL", "x").advice.unwrap().contains("FLAG, PAIR, POINTER, SIGNED"));
        assert!(refused("PAIR", "1").message.contains("not an integer"));
        assert!(refused("POINTER", "1").message.contains("not an integer"));
        let unknown = refused("OTHER", "1");
        assert!(unknown.message.contains("no such parameter"), "{unknown}");
        let mut bare = Checked { params: Vec::new(), ..policy };
        let none = set(&mut bare, &[("A".to_owned(), "1".to_owned())]).unwrap_err();
        assert_eq!(none.advice.unwrap(), "this policy has no parameters");
    }
}
