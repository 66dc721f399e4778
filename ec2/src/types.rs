//! Instance types: names that scripts know, and the machines that they stand for here.

/// An instance type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceType {
    /// Its name.
    pub name: &'static str,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory: u64,
    /// Whether it is of arm64; else of x86_64.
    pub arm64: bool,
}

const fn x86(name: &'static str, vcpus: u32, memory: u64) -> InstanceType {
    InstanceType {
        name,
        vcpus,
        memory,
        arm64: false,
    }
}

const fn arm(name: &'static str, vcpus: u32, memory: u64) -> InstanceType {
    InstanceType {
        name,
        vcpus,
        memory,
        arm64: true,
    }
}

/// All of them, in the order of their names.
pub const TYPES: &[InstanceType] = &[
    x86("c5.2xlarge", 8, 16_384),
    x86("c5.large", 2, 4096),
    x86("c5.xlarge", 4, 8192),
    arm("c6g.2xlarge", 8, 16_384),
    arm("c6g.large", 2, 4096),
    arm("c6g.medium", 1, 2048),
    arm("c6g.xlarge", 4, 8192),
    x86("m5.2xlarge", 8, 32_768),
    x86("m5.4xlarge", 16, 65_536),
    x86("m5.large", 2, 8192),
    x86("m5.xlarge", 4, 16_384),
    arm("m6g.2xlarge", 8, 32_768),
    arm("m6g.large", 2, 8192),
    arm("m6g.medium", 1, 4096),
    arm("m6g.xlarge", 4, 16_384),
    x86("r5.2xlarge", 8, 65_536),
    x86("r5.large", 2, 16_384),
    x86("r5.xlarge", 4, 32_768),
    x86("t2.2xlarge", 8, 32_768),
    x86("t2.large", 2, 8192),
    x86("t2.medium", 2, 4096),
    x86("t2.micro", 1, 1024),
    x86("t2.nano", 1, 512),
    x86("t2.small", 1, 2048),
    x86("t2.xlarge", 4, 16_384),
    x86("t3.2xlarge", 8, 32_768),
    x86("t3.large", 2, 8192),
    x86("t3.medium", 2, 4096),
    x86("t3.micro", 2, 1024),
    x86("t3.nano", 2, 512),
    x86("t3.small", 2, 2048),
    x86("t3.xlarge", 4, 16_384),
    arm("t4g.2xlarge", 8, 32_768),
    arm("t4g.large", 2, 8192),
    arm("t4g.medium", 2, 4096),
    arm("t4g.micro", 2, 1024),
    arm("t4g.nano", 2, 512),
    arm("t4g.small", 2, 2048),
    arm("t4g.xlarge", 4, 16_384),
];

impl InstanceType {
    /// The type of that name.
    pub fn named(name: &str) -> Option<&'static InstanceType> {
        TYPES.iter().find(|known| known.name == name)
    }

    /// As EC2 calls it.
    pub fn architecture(&self) -> &'static str {
        if self.arm64 { "arm64" } else { "x86_64" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order_and_each_is_there_once() {
        assert!(TYPES.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(InstanceType::named("t3.micro").is_some_and(|t| t.vcpus == 2 && t.memory == 1024));
        assert_eq!(InstanceType::named("x9.huge"), None);
    }
}
