//! Text into tokens.

use std::sync::Arc;

use crate::ast::Literal;
use crate::issue::Issue;

/// A token and where it begins, in code points.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub at: u32,
    pub kind: TokenKind,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TokenKind {
    End,
    Ident(Arc<str>),
    /// Operators, brackets, and the words `in`, `true`, `false`, `null`.
    Sign(&'static str),
    Literal(Literal),
    /// A whole number, whose range depends on a sign before it.
    Int(Arc<str>),
}

const SIGNS: &[&str] = &[
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":",
    "+", "*", "/", "%",
];
const WORDS: &[&str] = &["in", "true", "false", "null"];

struct Lexer<'t> {
    chars: Vec<char>,
    at: usize,
    issues: &'t mut Vec<Issue>,
}

/// The tokens of `text`, the last of which is [`TokenKind::End`]. What is no token is an issue.
pub(crate) fn tokens(text: &str, issues: &mut Vec<Issue>) -> Vec<Token> {
    let mut lexer = Lexer { chars: text.chars().collect(), at: 0, issues };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_blank();
        let at = lexer.at as u32;
        match lexer.next() {
            Some(kind) => {
                let end = kind == TokenKind::End;
                tokens.push(Token { at, kind });
                if end {
                    return tokens;
                }
            }
            None => lexer.at = lexer.at.max(at as usize + 1),
        }
    }
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn skip_blank(&mut self) {
        while let Some(c) = self.peek(0) {
            match c {
                '\t' | ' ' | '\r' | '\n' | '\u{c}' => self.at += 1,
                '/' if self.peek(1) == Some('/') => {
                    while self.peek(0).is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                }
                _ => break,
            }
        }
    }

    fn issue(&mut self, at: usize, message: String) {
        self.issues.push(Issue::new(at as u32, message));
    }

    fn next(&mut self) -> Option<TokenKind> {
        let Some(first) = self.peek(0) else { return Some(TokenKind::End) };
        if first.is_ascii_digit() || (first == '.' && self.peek(1).is_some_and(|c| c.is_ascii_digit())) {
            return self.number();
        }
        if first == '"' || first == '\'' {
            return self.string(0);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            // Up to two letters before a quote are a prefix: b, r, br, rb is none.
            let prefix = match (first.to_ascii_lowercase(), self.peek(1), self.peek(2)) {
                ('r' | 'b', Some('"' | '\''), _) => 1,
                ('b', Some('r' | 'R'), Some('"' | '\'')) => 2,
                _ => 0,
            };
            if prefix > 0 {
                return self.string(prefix);
            }
            let start = self.at;
            while self.peek(0).is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
                self.at += 1;
            }
            let word: String = self.chars[start..self.at].iter().collect();
            return Some(match WORDS.iter().find(|w| **w == word) {
                Some(word) => TokenKind::Sign(word),
                None => TokenKind::Ident(word.into()),
            });
        }
        for sign in SIGNS {
            if sign.chars().enumerate().all(|(index, c)| self.peek(index) == Some(c)) {
                self.at += sign.len();
                return Some(TokenKind::Sign(sign));
            }
        }
        self.issue(self.at, format!("Syntax error: token recognition error at: '{first}'"));
        None
    }

    fn digits(&mut self, radix: u32) -> String {
        let start = self.at;
        while self.peek(0).is_some_and(|c| c.is_digit(radix)) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    fn number(&mut self) -> Option<TokenKind> {
        let start = self.at;
        if self.peek(0) == Some('0')
            && self.peek(1) == Some('x')
            && self.peek(2).is_some_and(|c| c.is_ascii_hexdigit())
        {
            self.at += 2;
            let digits = self.digits(16);
            if self.unsigned() {
                return self.literal(start, u64::from_str_radix(&digits, 16).map(Literal::Uint).ok(), "uint");
            }
            return Some(TokenKind::Int(format!("0x{digits}").into()));
        }
        self.digits(10);
        let mut float = false;
        if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            float = true;
            self.at += 1;
            self.digits(10);
        }
        if matches!(self.peek(0), Some('e' | 'E')) {
            let sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
            if self.peek(1 + sign).is_some_and(|c| c.is_ascii_digit()) {
                float = true;
                self.at += 1 + sign;
                self.digits(10);
            }
        }
        let text: String = self.chars[start..self.at].iter().collect();
        if float {
            let value = text.parse::<f64>().ok().filter(|value| value.is_finite());
            return self.literal(start, value.map(Literal::Double), "double");
        }
        if self.unsigned() {
            return self.literal(start, text.parse().map(Literal::Uint).ok(), "uint");
        }
        Some(TokenKind::Int(text.into()))
    }

    fn unsigned(&mut self) -> bool {
        let is = matches!(self.peek(0), Some('u' | 'U'));
        self.at += usize::from(is);
        is
    }

    fn literal(&mut self, start: usize, value: Option<Literal>, what: &str) -> Option<TokenKind> {
        if value.is_none() {
            self.issue(start, format!("invalid {what} literal"));
        }
        Some(TokenKind::Literal(value.unwrap_or(Literal::Null)))
    }

    /// A string or bytes whose first quote is `prefix` characters ahead.
    fn string(&mut self, prefix: usize) -> Option<TokenKind> {
        let start = self.at;
        let (mut raw, mut bytes) = (false, false);
        for c in &self.chars[start..start + prefix] {
            raw |= c.eq_ignore_ascii_case(&'r');
            bytes |= c.eq_ignore_ascii_case(&'b');
        }
        self.at += prefix;
        let quote = self.chars[self.at];
        let long = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        let width = if long { 3 } else { 1 };
        self.at += width;
        let body = self.at;
        loop {
            match self.peek(0) {
                Some('\\') if !raw => self.at += 2,
                Some(c) if c == quote && (0..width).all(|n| self.peek(n) == Some(quote)) => break,
                Some('\n' | '\r') if !long => return self.unterminated(start),
                Some(_) => self.at += 1,
                None => return self.unterminated(start),
            }
        }
        let content = self.chars[body..self.at].to_vec();
        self.at += width;
        match unescape(&content, raw, bytes) {
            Ok(out) if bytes => Some(TokenKind::Literal(Literal::Bytes(out.into()))),
            Ok(out) => Some(TokenKind::Literal(Literal::String(String::from_utf8_lossy(&out).into()))),
            Err(reason) => {
                self.issue(start, reason.to_owned());
                Some(TokenKind::Literal(Literal::Null))
            }
        }
    }

    fn unterminated(&mut self, start: usize) -> Option<TokenKind> {
        let end = self.chars[start..].iter().position(|c| *c == '\n').map_or(self.chars.len(), |n| start + n);
        let text: String = self.chars[start..end].iter().collect();
        self.at = end;
        self.issue(start, format!("Syntax error: token recognition error at: '{text}'"));
        None
    }
}

/// The bytes that a literal's content stands for; line ends become `\n`.
fn unescape(content: &[char], raw: bool, bytes: bool) -> Result<Vec<u8>, &'static str> {
    const BAD: &str = "unable to unescape string";
    fn push(out: &mut Vec<u8>, c: char) {
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }
    let mut out = Vec::with_capacity(content.len());
    let mut at = 0;
    while let Some(&c) = content.get(at) {
        at += 1;
        if c == '\r' {
            at += usize::from(content.get(at) == Some(&'\n'));
            push(&mut out, '\n');
            continue;
        }
        if raw || c != '\\' {
            push(&mut out, c);
            continue;
        }
        let escape = *content.get(at).ok_or(BAD)?;
        at += 1;
        let (digits, radix) = match escape {
            'a' => (0, 7),
            'b' => (0, 8),
            'f' => (0, 0xc),
            'n' => (0, 0xa),
            'r' => (0, 0xd),
            't' => (0, 9),
            'v' => (0, 0xb),
            '\\' | '\'' | '"' | '`' | '?' => (0, escape as u32),
            'x' | 'X' => (2, 16),
            'u' if !bytes => (4, 16),
            'U' if !bytes => (8, 16),
            '0'..='3' => (3, 8),
            _ => return Err(BAD),
        };
        if digits == 0 {
            out.push(radix as u8);
            continue;
        }
        at -= usize::from(radix == 8);
        let code: String = content.get(at..at + digits).ok_or(BAD)?.iter().collect();
        at += digits;
        let code = u32::from_str_radix(&code, radix).map_err(|_| BAD)?;
        if bytes {
            out.push(code as u8);
        } else {
            push(&mut out, char::from_u32(code).ok_or("invalid unicode code point")?);
        }
    }
    Ok(out)
}
