"""From files to a vCPU's first instruction: kernels, zero page, CPUID, page tables, ACPI."""
