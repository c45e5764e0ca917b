"""Networks, batches and slow twins that several tests share."""
