"""One bank over several processes and machines (Memory Parallel): shards of whole documents, held by Ray actors."""
