/*
 * As pykcm_bpf_load, for a program whose functions the verifier looks at once, each on its own,
 * instead of at every call: "global functions" (Linux 5.6).  That needs a description of their
 * types, BTF, and for each function the slot at which it begins and its type: an array of struct
 * bpf_func_info.
 */
static int pykcm_bpf_load_functions(unsigned int type, const void *instructions, size_t count,
				    const char *license, const char *name, char *log,
				    size_t log_size, unsigned int log_level, const void *btf,
				    size_t btf_size, const void *functions, size_t function_count)
{
	union bpf_attr attr;
	size_t name_length = strlen(name);
	int btf_fd, result;

	if (count > UINT32_MAX || log_size > UINT32_MAX || btf_size > UINT32_MAX ||
	    function_count > count || name_length >= sizeof(attr.prog_name))
		return -EINVAL;
	memset(&attr, 0, sizeof(attr));
	attr.btf = (uintptr_t)btf;
	attr.btf_size = btf_size;
	btf_fd = bpf_call(BPF_BTF_LOAD, &attr);
	if (btf_fd < 0)
		return btf_fd;
	memset(&attr, 0, sizeof(attr));
	attr.prog_type = type;
	attr.insns = (uintptr_t)instructions;
	attr.insn_cnt = count;
	attr.license = (uintptr_t)license;
	attr.log_buf = (uintptr_t)log;
	attr.log_size = log_size;
	attr.log_level = log_level;
	memcpy(attr.prog_name, name, name_length);
	attr.prog_btf_fd = btf_fd;
	attr.func_info = (uintptr_t)functions;
	attr.func_info_rec_size = sizeof(struct bpf_func_info);
	attr.func_info_cnt = function_count;
	result = bpf_call(BPF_PROG_LOAD, &attr);
	close(btf_fd); /* the program holds on to its BTF */
	return result;
}
