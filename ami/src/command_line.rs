//! The kernel's command line, composed of parameters of the image, the launcher and the user.

/// Joins command lines. What is behind `--` in any of them is behind the only `--` of the result: the kernel
/// passes it to init, and takes no parameter from there.
pub fn join<'a>(lines: impl IntoIterator<Item = &'a str>) -> String {
    let (mut parameters, mut arguments) = (Vec::new(), Vec::new());
    for line in lines {
        let (before, behind) = split(line);
        parameters.push(before);
        arguments.push(behind);
    }
    parameters.retain(|words| !words.is_empty());
    arguments.retain(|words| !words.is_empty());
    if !arguments.is_empty() {
        parameters.push("--");
    }
    parameters.extend(arguments);
    parameters.join(" ")
}

/// The kernel's parameters and init's arguments. A `--` in quotation marks is part of a value, as in the
/// kernel (`next_arg` in lib/cmdline.c).
fn split(line: &str) -> (&str, &str) {
    let mut quoted = false;
    let mut start = 0;
    for (at, byte) in line.bytes().chain([b' ']).enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b' ' | b'\t' | b'\n' if !quoted => {
                if line.get(start..at) == Some("--") {
                    let behind = line.get(at..).unwrap_or_default();
                    return (line[..start].trim(), behind.trim());
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    (line.trim(), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_parameters_go_before_the_arguments_of_init() {
        assert_eq!(
            join(["quiet x -- y", "panic=-1", "z -- 3"]),
            "quiet x panic=-1 z -- y 3"
        );
        assert_eq!(join(["", " quiet ", "", "panic=-1"]), "quiet panic=-1");
        assert_eq!(join(["-- single", "root=/dev/vda"]), "root=/dev/vda -- single");
        assert_eq!(join(["x --", "y"]), "x y");
        assert_eq!(join(["a --b - ---", "c"]), "a --b - --- c");
        assert_eq!(join(["a=\"b -- c\" -- d", "e"]), "a=\"b -- c\" e -- d");
        assert_eq!(join(["ä=\"--", "e"]), "ä=\"-- e");
        assert_eq!(join([]), "");
    }
}
