"""What a sample says: its members' text as conversations or documents of one of the kinds."""
