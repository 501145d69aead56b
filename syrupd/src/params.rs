//! `--set NAME=VALUE`: parameters, written into the object before it is linked.

use libbpf_rs::btf::{BtfKind, BtfType, ReferencesType as _, types};
use syrup_hook::set_constant;

use crate::btf;
use crate::error::{Code, Error, Result};

/// Sets each parameter in the image. Values are integers (decimal, 0x hex) or
/// true and false, and must fit the parameter's type.
///
/// # Errors
/// [`Code::Usage`] naming the parameters there are.
pub fn set(image: &mut [u8], known: &[String], params: &[(String, String)]) -> Result<()> {
    for (name, text) in params {
        let bad = |why: String| {
            Error::new(Code::Usage, format!("--set {name}={text}: {why}")).advise(
                if known.is_empty() {
                    "this policy has no parameters".to_owned()
                } else {
                    format!("parameters of this policy: {}", known.join(", "))
                },
            )
        };
        if !known.contains(name) {
            return Err(bad("the policy has no such parameter".to_owned()));
        }
        let (size, signed) = {
            let btf = object::File::parse(&*image).ok().as_ref().and_then(btf::types);
            btf.as_ref()
                .and_then(|btf| btf.type_by_name::<types::Var<'_>>(name))
                .and_then(|var| integer(var.referenced_type().skip_mods_and_typedefs()))
                .ok_or_else(|| bad("it is not an integer".to_owned()))?
        };
        let value = encode(text, size, signed).map_err(bad)?;
        let set = set_constant(image, name, &value).map_err(|e| bad(e.to_string()))?;
        if !set {
            return Err(bad("the policy has no such parameter".to_owned()));
        }
    }
    Ok(())
}

fn integer(ty: BtfType<'_>) -> Option<(usize, bool)> {
    if ty.kind() != BtfKind::Int {
        return None;
    }
    let int = types::Int::try_from(ty).ok()?;
    Some((usize::from(int.bits) / 8, matches!(int.encoding, types::IntEncoding::Signed)))
}

fn encode(text: &str, size: usize, signed: bool) -> std::result::Result<Vec<u8>, String> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let magnitude: i128 = match (digits, digits.strip_prefix("0x")) {
        ("true", _) => 1,
        ("false", _) => 0,
        (_, Some(hex)) => i128::from_str_radix(hex, 16).map_err(|e| e.to_string())?,
        _ => digits.parse().map_err(|e: std::num::ParseIntError| e.to_string())?,
    };
    let value = if negative { -magnitude } else { magnitude };
    let bits = u32::try_from(size * 8).map_err(|e| e.to_string())?;
    let (low, high) = if signed {
        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
    } else {
        (0, (1i128 << bits) - 1)
    };
    if !(low..=high).contains(&value) {
        return Err(format!("out of range {low}..={high}"));
    }
    Ok(value.to_le_bytes()[..size].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
