/* What the programs of the tests need of libbpf's headers. */
#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))

unsigned long long load_byte(void *skb, unsigned long long off) asm("llvm.bpf.load.byte");
unsigned long long load_half(void *skb, unsigned long long off) asm("llvm.bpf.load.half");
unsigned long long load_word(void *skb, unsigned long long off) asm("llvm.bpf.load.word");

static long (*const bpf_probe_read_kernel)(void *dst, __u32 size, const void *from) =
	(void *)BPF_FUNC_probe_read_kernel;
