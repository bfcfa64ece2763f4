"""From picture files to uint8 training batches (host side), and colours on the device."""
