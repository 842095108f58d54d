"""A small BPF toolchain: assembler, disassembler, program loading.  It knows nothing of KCM."""
