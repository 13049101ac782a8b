//! Which types fit which, and what their free parts then are.

use crate::types::Type;

/// What free types stand for. A failed attempt leaves nothing behind.
#[derive(Debug, Default)]
pub(crate) struct Unifier {
    bound: Vec<Option<Type>>,
    /// What to put back: variable, and what it stood for before.
    trail: Vec<(u32, Option<Type>)>,
}

/// Steps that one question may take.
const STEPS_MAX: u32 = 2_000;
/// Parts that a type may have.
const PARTS_MAX: u32 = 1_000;

impl Unifier {
    pub fn fresh(&mut self) -> Type {
        self.bound.push(None);
        Type::Var(self.bound.len() as u32 - 1)
    }

    /// A signature with fresh types for its parameters.
    pub fn instantiate(&mut self, params: &[Type], result: &Type) -> (Vec<Type>, Type) {
        let mut letters: Vec<(char, Type)> = Vec::new();
        let mut replace = |of: &Type| -> Option<Type> {
            let Type::Param(letter) = of else { return None };
            if let Some((_, fresh)) = letters.iter().find(|(known, _)| known == letter) {
                return Some(fresh.clone());
            }
            let fresh = self.fresh();
            letters.push((*letter, fresh.clone()));
            Some(fresh)
        };
        let params = params.iter().map(|param| param.replaced(&mut replace)).collect();
        let result = result.replaced(&mut replace);
        (params, result)
    }

    /// The type with what its free parts stand for; with `close`, those that stand for nothing are dyn.
    /// Beyond a size that no sensible type has, the rest is dyn.
    pub fn substitute(&self, of: &Type, close: bool) -> Type {
        self.substitute_within(of, close, &mut 0)
    }

    fn substitute_within(&self, of: &Type, close: bool, parts: &mut u32) -> Type {
        of.replaced(&mut |of| {
            *parts += 1;
            match of {
                _ if *parts > PARTS_MAX => Some(Type::Dyn),
                Type::Var(var) => match self.bound.get(*var as usize) {
                    Some(Some(bound)) => Some(self.substitute_within(bound, close, parts)),
                    _ => close.then_some(Type::Dyn),
                },
                _ => None,
            }
        })
    }

    /// Whether a value of the first type fits where the second is wanted, or could.
    pub fn assignable(&mut self, a: &Type, b: &Type) -> bool {
        self.all_assignable(std::slice::from_ref(a), std::slice::from_ref(b))
    }

    pub fn all_assignable(&mut self, a: &[Type], b: &[Type]) -> bool {
        self.trail.clear();
        let mut steps = 0;
        let fits = self.all(a, b, &mut steps);
        if !fits {
            while let Some((var, before)) = self.trail.pop() {
                self.bound[var as usize] = before;
            }
        }
        fits
    }

    fn all(&mut self, a: &[Type], b: &[Type], steps: &mut u32) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| self.fits(a, b, steps))
    }

    fn bind(&mut self, var: u32, to: Type) {
        let before = self.bound[var as usize].replace(to);
        self.trail.push((var, before));
    }

    fn fits(&mut self, a: &Type, b: &Type, steps: &mut u32) -> bool {
        *steps += 1;
        if *steps > STEPS_MAX {
            return false;
        }
        if let Type::Var(var) = b {
            let (valid, had) = self.substitutes(a, *var, steps);
            if valid || had {
                return valid;
            }
        }
        if let Type::Var(var) = a {
            return self.substitutes(b, *var, steps).0;
        }
        if a.is_dyn_or_error() || b.is_dyn_or_error() {
            return true;
        }
        match (a, b) {
            (Type::Null, b) => {
                matches!(
                    b,
                    Type::Null | Type::Opaque(..) | Type::Object(_) | Type::Timestamp | Type::Duration
                )
            }
            (Type::Type(_), Type::Type(_)) => true,
            (Type::List(a), Type::List(b)) => self.fits(a, b, steps),
            (Type::Map(a), Type::Map(b)) => self.fits(&a.0, &b.0, steps) && self.fits(&a.1, &b.1, steps),
            (Type::Opaque(a, inner_a), Type::Opaque(b, inner_b)) => {
                a == b && self.all(inner_a, inner_b, steps)
            }
            _ => a == b,
        }
    }

    /// Whether `of` may be what `var` stands for, and whether it stood for something already.
    fn substitutes(&mut self, of: &Type, var: u32, steps: &mut u32) -> (bool, bool) {
        if *of == Type::Var(var) {
            return (true, false);
        }
        if let Some(bound) = self.bound[var as usize].clone() {
            if bound == *of {
                return (true, true);
            }
            if self.fits(of, &bound, steps) {
                let general = Self::most_general(of, &bound);
                if general != Type::Var(var) {
                    self.bind(var, general);
                }
                return (true, true);
            }
            return (false, true);
        }
        if self.occurs(var, of, steps) {
            return (false, false);
        }
        self.bind(var, of.clone());
        (true, false)
    }

    fn occurs(&self, var: u32, within: &Type, steps: &mut u32) -> bool {
        *steps += 1;
        if *steps > STEPS_MAX {
            return true;
        }
        match within {
            Type::Var(other) if *other == var => true,
            Type::Var(other) => {
                self.bound[*other as usize].as_ref().is_some_and(|bound| self.occurs(var, bound, steps))
            }
            other => other.parameters().into_iter().any(|inner| self.occurs(var, inner, steps)),
        }
    }

    /// Of two types that fit, the one that says less.
    pub fn most_general(a: &Type, b: &Type) -> Type {
        if less_specific(a, b) { a.clone() } else { b.clone() }
    }
}

fn less_specific(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Dyn | Type::Var(_), _) => true,
        (_, Type::Dyn | Type::Var(_)) => false,
        (Type::Type(_), Type::Type(_)) => true,
        (Type::List(a), Type::List(b)) => less_specific(a, b),
        (Type::Map(a), Type::Map(b)) => less_specific(&a.0, &b.0) && less_specific(&a.1, &b.1),
        (Type::Opaque(a, inner_a), Type::Opaque(b, inner_b)) => {
            a == b
                && inner_a.len() == inner_b.len()
                && inner_a.iter().zip(&**inner_b).all(|(a, b)| less_specific(a, b))
        }
        _ => a == b,
    }
}
