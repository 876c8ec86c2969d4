//! `strftime_now`: today's date in UTC, which is what engines in containers have.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// The time now in a format of Python's `strftime`.
#[expect(clippy::needless_pass_by_value, reason = "the signature of a template function")]
pub fn now(format: String) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    write(since, &format)
}

/// Year, month (1 to 12) and day of a day since 1970, by Howard Hinnant's `civil_from_days`.
fn civil(day: u64) -> (u64, u64, u64) {
    let shifted = day + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

fn write(seconds: u64, format: &str) -> String {
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    let month_name = MONTHS[(month as usize).saturating_sub(1) % 12];
    let day_name = DAYS[(days % 7) as usize];
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut width = 2;
        let mut kind = letters.next();
        if kind == Some('-') {
            width = 1;
            kind = letters.next();
        }
        let hour12 = (hour + 11) % 12 + 1;
        let padded = |number: u64| format!("{number:0width$}");
        match kind {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&padded(year % 100)),
            Some('m') => out.push_str(&padded(month)),
            Some('d') => out.push_str(&padded(day)),
            Some('H') => out.push_str(&padded(hour)),
            Some('I') => out.push_str(&padded(hour12)),
            Some('M') => out.push_str(&padded(minute)),
            Some('S') => out.push_str(&padded(second)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('F') => out.push_str(&format!("{year}-{month:02}-{day:02}")),
            Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::write;

    #[test]
    fn dates_are_written_as_python_writes_them() {
        for (seconds, format, expected) in [
            (0, "%d %b %Y", "01 Jan 1970"),
            (951_782_400, "%Y-%m-%d %A", "2000-02-29 Tuesday"),
            (1_735_689_599, "%F %T %p", "2024-12-31 23:59:59 PM"),
            (1_735_689_600, "%-d/%-m/%y %I:%M %a %%%q", "1/1/25 12:00 Wed %%q"),
            (4_102_444_800, "%B %d, %Y%", "January 01, 2100%"),
        ] {
            assert_eq!(write(seconds, format), expected);
        }
    }
}
