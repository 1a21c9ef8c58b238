"""What all stages share: errors, durable files, text, the console, the workspace, the device."""
